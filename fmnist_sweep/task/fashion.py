"""Training on Fashion-MNIST as a task that can be swept: see `fmnist_sweep.sweep.Task`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fmnist_sweep.base.schema import known_keys
from fmnist_sweep.results.metrics import EPOCH_METRICS, METRICS, direction
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.runners import Runner
from fmnist_sweep.sweep.task import FINGERPRINT, Decision, Task

if TYPE_CHECKING:
    from fmnist_sweep.task.trial import Training
from fmnist_sweep.results.keys import CHANGES_NO_RESULT
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import CHANGEABLE, Config, DataConfig, conf_folder
from fmnist_sweep.task.stacked_launcher import StackedLauncher


class FashionTask(Task):
    """A task with the configuration of `fmnist_sweep.train`, which has a schema."""

    repeats_key = "repeats"
    objectives = METRICS
    step_metrics = EPOCH_METRICS
    default_objective = "val_accuracy"
    known_keys = tuple(known_keys(Config))
    free_keys = CHANGES_NO_RESULT
    epochs_key = "trainer.epochs"
    figures = ("parameters", "steps")
    data_keys = tuple(f"data.{name}" for name in DataConfig.model_fields if name != "batch_size")

    def check(self, config: DictConfig) -> None:
        """Check types, ranges, targets and their arguments."""
        from fmnist_sweep.task import build

        build.check(parsed(config))

    def check_keys(self, config: DictConfig) -> None:
        """Check types and ranges."""
        parsed(config)

    def dependencies(self, config: DictConfig) -> Mapping[str, str]:
        """Return the fingerprint of the data, unless it is Fashion-MNIST itself."""
        from fmnist_sweep.task.data import fashion, loaders
        from fmnist_sweep.task.data.idx import SHA256, SPLITS

        data = parsed(config).data
        if data.kind == "fashion_mnist" and data.verify:
            return {}
        found = loaders.load(data, ("train", "validation")).fingerprint
        genuine = fashion.fingerprint([SHA256[name] for name in SPLITS["train"]])
        return {} if found == genuine else {FINGERPRINT: found}

    def known_figures(self, config: DictConfig) -> Mapping[str, float]:
        """Return the number of parameters and that of optimizer steps."""
        from fmnist_sweep.task import build
        from fmnist_sweep.task.data import splits

        settings = parsed(config)
        data = splits.describe(settings.data)
        trial = build.build(settings, data.format, data.training)
        batches = math.ceil(data.training / settings.data.batch_size)
        return {
            "parameters": sum(parameter.numel() for parameter in trial.model.parameters()),
            "steps": settings.trainer.epochs * batches,
        }

    def direction(self, metric: str) -> str:
        """Return the direction that the metric's name tells; see `results.metrics`."""
        return direction(metric)


class FashionTraining(FashionTask):
    """The task of `fmnist_sweep.train`, whose trials can be trained together in stacks."""

    preload = (*Task.preload, "fmnist_sweep.task.trial")
    can_pause = True
    changeable_keys = CHANGEABLE

    def check_changes(self, config: DictConfig, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Check that the training step is the same for all values."""
        from fmnist_sweep.task import build

        build.check_changes(parsed(config), ranges)

    def prepare(
        self,
        config: DictConfig,
        run: Path,
        on_epoch: Callable[[Epoch], Decision],
        together: int,
        **population: Any,
    ) -> "Training":
        """Prepare a trial of a sweep; see `trial.prepare`."""
        from fmnist_sweep.task import trial

        return trial.prepare(
            parsed(config), run, test=False, on_epoch=on_epoch, together=together, **population
        )

    def runner(
        self, config: DictConfig, context: HydraContext, function: TaskFunction, cores: int
    ) -> Runner:
        """Train trials in stacks, with the defaults of `hydra/launcher=stacked`."""
        settings: Any = OmegaConf.load(Path(conf_folder(), "hydra/launcher/stacked.yaml"))
        del settings["_target_"]
        launcher = StackedLauncher(**settings)
        launcher.setup(hydra_context=context, task_function=function, config=config)
        return launcher.runner(cores)


def objective_values(summary: Mapping[str, Any]) -> Any:
    """Return what the current Hydra job is to return: the value of each objective."""
    objective = HydraConfig.get().sweeper.get("objective") or FashionTask.default_objective
    if isinstance(objective, str):
        return summary[objective]
    return [summary[name] for name in objective]
