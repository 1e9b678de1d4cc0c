"""Train one trial, or with `-m` run a sweep: `python -m fmnist_sweep.train [key=value ...]`."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fmnist_sweep.base.schema import trusted_packages
from fmnist_sweep.sweep import sweeps
from fmnist_sweep.sweep.task import on_epoch
from fmnist_sweep.task.cli import parsed, run_hydra_command
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.fashion import FashionTraining, objective_values


@hydra.main(
    config_path=conf_folder(),
    config_name="config",
    # Callbacks of this package, of Hydra and of packages that the user trusts.
    execution_whitelist=("fmnist_sweep.*", "hydra.experimental.*", *trusted_packages()),
)
@sweeps(FashionTraining())
def task(config: DictConfig) -> Any:
    """Train one trial and return its objective, or the list of its objectives.

    The launcher `stacked` calls `FashionTraining.prepare` instead, to train many trials at once.
    """
    from fmnist_sweep.task import trial  # imports torch, which --help and --cfg do not need

    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN
    folder = Path(hydra_config.runtime.output_dir)
    summary = trial.run(parsed(config), folder, test=single, on_epoch=on_epoch())
    return objective_values(summary)


def main() -> None:
    """Run the command."""
    run_hydra_command(task)


if __name__ == "__main__":
    main()
