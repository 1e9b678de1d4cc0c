"""Log runs to TensorBoard, MLflow or Weights & Biases, beside the run folder.

All are optional dependencies, imported only if `logger.kind` names them. An error of any is one
line in the run's log, and the run continues without it.
"""

import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from fmnist_sweep.results import record
from fmnist_sweep.results.keys import changes_no_result
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.task.config import Config

log = logging.getLogger(__name__)

# MLflow's run status for each state of a trial.
_MLFLOW_STATUS = {
    "COMPLETE": "FINISHED",
    "PAUSED": "KILLED",
    "PRUNED": "KILLED",
    "FAILED": "FAILED",
}


INIT_SECONDS = 10  # that W&B may take to begin a run


class Backend(Protocol):
    """A tracker of one run; its methods may raise any exception."""

    def epoch(self, row: Epoch) -> None:
        """Log a finished epoch."""

    def end(self, summary: Mapping[str, Any], picture: Path) -> None:
        """Log the summary and the picture `results.png`, and close the run."""


class Logger:
    """The backend that a configuration names, dropped after its first error."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.kind = config.logger.kind
        self.backend: Backend | None = None
        make = _BACKENDS.get(self.kind)
        if make:
            self._try(lambda: setattr(self, "backend", make(config, folder)))

    def epoch(self, row: Epoch) -> None:
        """Log a finished epoch."""
        if self.backend:
            self._try(partial(self.backend.epoch, row))

    def end(self, summary: Mapping[str, Any], picture: Path) -> None:
        """Log the end of the run.

        Args:
            summary: the contents of `summary.json`.
            picture: the run's `results.png`.
        """
        if self.backend:
            self._try(partial(self.backend.end, summary, picture))

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            self.backend = None
            text = " ".join(str(error).split())[:200] or type(error).__name__
            if isinstance(error, ModuleNotFoundError):
                text += f"; pip install 'fmnist-sweep[{self.kind}]'"
            log.warning("logger=%s: continues without it: %s", self.kind, text)


class TensorBoard:
    """TensorBoard's event files in the folder `tensorboard/` of the run folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.parameters = parameters(config)

    def epoch(self, row: Epoch) -> None:
        for name, value in _metrics(asdict(row)).items():
            self.writer.add_scalar(name, value, row.epoch)
        self.writer.flush()

    def end(self, summary: Mapping[str, Any], picture: Path) -> None:
        from fmnist_sweep.base.figures import imread

        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in self.parameters.items()}
        finals = {f"final/{name}": value for name, value in _metrics(summary).items()}
        self.writer.add_hparams(plain, finals, run_name=".")
        if picture.exists():
            self.writer.add_image("results", imread(str(picture))[..., :3], dataformats="HWC")
        self.writer.close()


class MLflow:
    """An MLflow run for each trial; the trials of a sweep are children of the sweep's run."""

    def __init__(self, config: Config, folder: Path) -> None:
        # By default MLflow retries for minutes, during which nothing is trained.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.client = MlflowClient(config.logger.uri)
        experiment = self._experiment()
        in_sweep = (folder / "trial.json").exists()
        parent = self._parent(experiment, folder.parent) if in_sweep else None
        name = f"trial {folder.name}" if in_sweep else folder.name
        tags = {"mlflow.runName": name, "run_folder": str(folder)}
        if parent:
            tags["mlflow.parentRunId"] = parent
        self.run = self.client.create_run(experiment, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in parameters(config).items()]
        self.client.log_batch(self.run, params=params)

    def _experiment(self) -> str:
        existing = self.client.get_experiment_by_name("fmnist_sweep")
        return str(
            existing.experiment_id if existing else self.client.create_experiment("fmnist_sweep")
        )

    def _parent(self, experiment: str, sweep: Path) -> str:
        """Return the id of the sweep's run, which the sweep's first trial makes."""
        with FileLock(sweep / ".mlflow.lock"):
            try:
                return str(record.read_json(sweep, "mlflow.json")["run_id"])
            except FileNotFoundError:
                tags = {"mlflow.runName": sweep.name, "sweep_folder": str(sweep)}
                run = self.client.create_run(experiment, tags=tags)
                self.client.set_terminated(run.info.run_id)
                record.write_json(sweep, "mlflow.json", {"run_id": run.info.run_id})
                return str(run.info.run_id)

    def epoch(self, row: Epoch) -> None:
        self._metrics(asdict(row), row.epoch)

    def end(self, summary: Mapping[str, Any], picture: Path) -> None:
        self._metrics({f"final_{name}": v for name, v in _metrics(summary).items()}, 0)
        if picture.exists():
            self.client.log_artifact(self.run, str(picture))
        self.client.set_terminated(self.run, _MLFLOW_STATUS[str(summary["state"])])

    def _metrics(self, values: Mapping[str, Any], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.metric(name, value, now, step) for name, value in _metrics(values).items()]
        self.client.log_batch(self.run, metrics=metrics)


class WandB:
    """A run of Weights & Biases for each trial; the trials of a sweep are a group."""

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        self.wandb = wandb
        in_sweep = (folder / "trial.json").exists()
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
        if config.logger.uri:
            settings.base_url = config.logger.uri
        self.run = wandb.init(
            project="fmnist_sweep",
            group=folder.parent.name if in_sweep else None,
            name=f"trial {folder.name}" if in_sweep else folder.name,
            id=self._id(folder),
            resume="allow",  # a trial that was paused or interrupted
            config=parameters(config),
            dir=str(folder),
            reinit="create_new",  # many trials train in one process
            settings=settings,
        )

    def _id(self, folder: Path) -> str:
        """Return the id of the folder's run, which the first attempt makes."""
        try:
            return str(record.read_json(folder, "wandb.json")["id"])
        except FileNotFoundError:
            made = uuid.uuid4().hex[:12]
            record.write_json(folder, "wandb.json", {"id": made})
            return made

    def epoch(self, row: Epoch) -> None:
        self.run.log(_metrics(asdict(row)), step=row.epoch)

    def end(self, summary: Mapping[str, Any], picture: Path) -> None:
        finals = {f"final_{name}": value for name, value in _metrics(summary).items()}
        self.run.summary.update({**finals, "state": summary["state"]})
        if picture.exists():
            self.run.log({"results": self.wandb.Image(str(picture))})
        self.run.finish(exit_code=int(summary["state"] == "FAILED"))


_BACKENDS: dict[str, Callable[[Config, Path], Backend]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def parameters(config: Config) -> dict[str, Any]:
    """Return a configuration by dotted keys, without keys that cannot change a result."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(by_alias=True, exclude_unset=True).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if not changes_no_result(key)}


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among a row's values: the finite numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and name not in ("epoch", "seed", "started", "ended")
    }
