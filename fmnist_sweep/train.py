"""Trains one trial, or with `-m` a sweep: `python -m fmnist_sweep.train [key=value ...]`."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fmnist_sweep.base.schema import trusted_packages
from fmnist_sweep.sweep import sweeps
from fmnist_sweep.task.cli import parsed, with_clear_errors
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.fashion import FashionTraining, objective_values


@hydra.main(
    config_path=conf_folder(),
    config_name="config",
    # Hydra's callbacks, and those of packages that the user trusts, beside ours.
    execution_whitelist=("fmnist_sweep.*", "hydra.experimental.*", *trusted_packages()),
)
@sweeps(FashionTraining())
def task(config: DictConfig) -> Any:
    """One trial: a composed configuration in, its objective out."""
    # These import torch and optuna, which --help and --cfg do without.
    from fmnist_sweep.sweep.job import on_epoch
    from fmnist_sweep.task import trial

    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    folder = Path(hydra_config.runtime.output_dir)
    summary = trial.run(parsed(config), folder, test=single, on_epoch=on_epoch())
    return objective_values(summary)


def main() -> None:
    """The command."""
    with_clear_errors(task)


if __name__ == "__main__":
    main()
