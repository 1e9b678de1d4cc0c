"""Trains one trial, or with `-m` a sweep: `python -m fmnist_sweep.train [key=value ...]`."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fmnist_sweep.cli import parsed, with_clear_errors
from fmnist_sweep.config import conf_folder, trusted_packages
from fmnist_sweep.fashion_task import FashionTask
from fmnist_sweep.sweep import sweeps


@hydra.main(
    config_path=conf_folder(),
    config_name="config",
    # Hydra's callbacks, and those of packages that the user trusts, beside ours.
    execution_whitelist=("fmnist_sweep.*", "hydra.experimental.*", *trusted_packages()),
)
@sweeps(FashionTask())
def task(config: DictConfig) -> Any:
    """One trial: a composed configuration in, its objective out."""
    # These import torch and optuna, which --help and --cfg do without.
    from fmnist_sweep import trial
    from fmnist_sweep.sweep.job import on_epoch

    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    folder = Path(hydra_config.runtime.output_dir)
    summary = trial.run(parsed(config), folder, test=single, on_epoch=on_epoch())
    objective = hydra_config.sweeper.get("objective") or "val_accuracy"
    return summary[objective] if isinstance(objective, str) else [summary[o] for o in objective]


def main() -> None:
    """The command."""
    with_clear_errors(task)


if __name__ == "__main__":
    main()
