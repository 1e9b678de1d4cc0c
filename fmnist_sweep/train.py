"""Trains one trial, or with `-m` a sweep: `python -m fmnist_sweep.train [key=value ...]`."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fmnist_sweep.cli import parsed, with_clear_errors
from fmnist_sweep.config import conf_folder
from fmnist_sweep.sweep import plugins

plugins.register()


@hydra.main(
    config_path=conf_folder(), config_name="config", execution_whitelist=("fmnist_sweep.*",)
)
def task(config: DictConfig) -> Any:
    """One trial: a composed configuration in, its objective out."""
    # These import torch and optuna, which --help and --cfg do without.
    from fmnist_sweep import trial
    from fmnist_sweep.sweep.job import reporter

    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    folder = Path(hydra_config.runtime.output_dir)
    summary = trial.run(parsed(config), folder, test=single, on_epoch=reporter())
    objective = hydra_config.sweeper.get("objective", "val_accuracy")
    return summary[objective] if isinstance(objective, str) else [summary[o] for o in objective]


def main() -> None:
    """The command."""
    with_clear_errors(task)


if __name__ == "__main__":
    main()
