"""One trial from its configuration to its finished run folder: data, model, training, record."""

import io
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmnist_sweep.base.errors import ConfigError, TrialFailed
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.base.processes import cores_left
from fmnist_sweep.engine import checkpoint, functional_model
from fmnist_sweep.engine.checkpoint import Checkpoint, CheckpointError, OtherConfiguration
from fmnist_sweep.engine.compiling import worth_compiling
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.scheduler import TrainingJob, train
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.results import record, run_plot
from fmnist_sweep.results.metrics import EPOCH_METRICS
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.data import splits
from fmnist_sweep.task.loggers import Logger
from fmnist_sweep.task.screen import Screen

log = logging.getLogger(__name__)

# Seconds of training between two checkpoints where `trainer.checkpoint=auto`.
AUTO_CHECKPOINT = 60.0


def run(
    config: Config, folder: Path, *, test: bool, on_epoch: Callable[[Epoch], bool] | None = None
) -> dict[str, Any]:
    """Train a trial in this process and complete its run folder: `prepare`, `train`, `finish`.

    Returns:
        The contents of `summary.json`.

    Raises:
        ConfigError, DataError: nothing was trained; an existing run is left alone.
        TrialFailed: the loss or a weight became NaN or infinite; history and summary are written.
    """
    training = prepare(config, folder, test=test, on_epoch=on_epoch)
    train(training.jobs)
    return training.finish()


def prepare(
    config: Config, folder: Path, *, test: bool, on_epoch: Callable[[Epoch], bool] | None = None
) -> "Training":
    """Load the data, build the models and resume from checkpoints; train nothing yet.

    An interrupted run resumes from its last checkpoint, in this folder or in that of an earlier
    attempt, and then gets the numbers that it would have had.

    With `repeats` > 1, train the configuration on that many seeds, from `seed` on, side by side.
    The folder's figures are their means; each seed has a folder within, `repeat-0` first.

    Args:
        folder: exists; Hydra has written its log and configuration there.
        test: open the test images after the last epoch. A sweep never does.
        on_epoch: called with each finished epoch; return False to prune the trial.

    Raises:
        ConfigError, DataError: the trial cannot be trained; an existing run is left alone.
    """
    check_folder(config, folder)
    where = build.device(config)
    threads = min(config.trainer.threads, cores_left() or config.trainer.threads)
    if threads < config.trainer.threads:
        log.info("trainer.threads=%d: OMP_NUM_THREADS leaves %d", config.trainer.threads, threads)
    torch.set_num_threads(threads)
    # Dead ReLU units let Adam's moments decay into denormals, which slow a step several times.
    torch.set_flush_denormal(True)
    data = splits.load(config.data, where, test)
    training = Training(config, folder, data, where, threads, test, on_epoch)
    training.resume()
    return training


def check_folder(config: Config, folder: Path) -> None:
    """Makes sure that a run can be trained in a folder without harm to what is there.

    Raises:
        ConfigError: a finished run or a sweep is, or an interrupted run of something else.
    """
    if record.holds_sweep(folder):
        raise ConfigError(f"{folder}: holds a sweep, which is never overwritten")
    if record.holds_run(folder) and not record.is_interrupted(folder):
        raise ConfigError(f"{folder}: holds a run already, which is never overwritten")
    for repeat, path in record.checkpoints(folder).items():
        try:
            checkpoint.read(path, config.model_copy(update={"seed": config.seed + repeat}).identity)
        except OtherConfiguration:
            raise ConfigError(
                f"{folder}: holds an interrupted run of another configuration; "
                "name another folder, or give the same keys to go on"
            ) from None
        except (CheckpointError, OSError):  # which is told when it is to be gone on from
            pass


class Training:
    """The repeats of one configuration in training, and what they leave in the run folder.

    jobs: to be trained, by `scheduler.train` or among those of other trials; then call `finish`.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        data: DataSplits,
        where: torch.device,
        threads: int,
        test: bool,
        wanted: Callable[[Epoch], bool] | None,
    ) -> None:
        self.started = time.time()
        self.config = config
        self.folder = folder
        self.logger = Logger(config, folder)
        self.data = data
        self.where = where
        self.threads = threads
        self.test = test
        self.wanted = wanted
        self.history: list[Epoch] = []
        seeds = [config.seed + repeat for repeat in range(config.repeats)]
        self.configs = [config.model_copy(update={"seed": seed}) for seed in seeds]
        self.histories: list[list[Epoch]] = [[] for _ in seeds]
        self.pruned = False
        steps = math.ceil(len(data.train) / config.data.batch_size)
        self.screen = Screen(
            config.trainer.epochs, steps, bar=wanted is None and sys.stdout.isatty()
        )
        trials = [
            replace(build.build(one), checkpoint=self._checkpoint(at, one))
            for at, one in enumerate(self.configs)
        ]
        self.early_stopping = trials[0].recipe.early_stopping is not None
        self.parameters = sum(p.numel() for p in trials[0].model.parameters())
        compile, how = worth_compiling(
            config.trainer.compile, config.trainer.epochs * steps, self.parameters, where
        )
        self.jobs = [self._job(at, one, compile) for at, one in enumerate(trials)]
        self._tell(how)

    def _checkpoint(self, repeat: int, config: Config) -> Checkpoint | None:
        wish = config.trainer.checkpoint
        if wish is False:
            return None
        seconds = AUTO_CHECKPOINT if wish == "auto" else 0.0
        return Checkpoint(record.checkpoint(self.folder, repeat), config.identity, seconds)

    def resume(self) -> None:
        """Takes in the epochs that checkpoints of an interrupted run hold."""
        for repeat, job in enumerate(self.jobs):
            kept = job.trial.checkpoint
            path = self._found(repeat)
            if kept is None or path is None:
                continue
            try:
                state = checkpoint.read(path, kept.whose)
            except (CheckpointError, OSError) as error:
                log.warning("%s %s; training begins anew", path, error)
                continue
            kept.resume = path
            history = self.histories[repeat] = [Epoch(*row) for row in state["history"]]
            job.kept = history[state["kept_epoch"] - 1]
            log.info("Going on after epoch %d, from %s", len(history), path)
        while self._epochs_of_all() > len(self.history):
            self._write(self._next_epoch())
        if self.history:  # it may have been interrupted before it could be told
            self._decide(self.history[-1])
        self._begin_epoch()

    def _found(self, repeat: int) -> Path | None:
        """The newest checkpoint of a repeat, of this attempt or an earlier one."""
        folders = [self.folder, *record.earlier_attempts(self.folder)]
        paths = [record.checkpoint(folder, repeat) for folder in folders]
        return next((path for path in paths if path.exists()), None)

    def _job(self, repeat: int, trial: Trial, compile: bool) -> TrainingJob:
        first = repeat == 0
        return TrainingJob(
            trial,
            self.data,
            self.config.data.batch_size,
            compile,
            self.config.trainer.precision == "bf16",
            self.config.trainer.log_every,
            self.threads,
            on_epoch=lambda row: self._epoch_ended(repeat, row),
            # Of several repeats the first one speaks for all.
            on_batches=lambda at: (
                self.screen.batch(at.batch, at.loss, at.accuracy) if first else None
            ),
        )

    def _tell(self, how: str) -> None:
        model = self.jobs[0].trial.model
        log.info("Device: %s, %d thread(s), %s", self.where, self.threads, how)
        log.info("Model: %s with %s parameters", type(model).__name__, f"{self.parameters:,}")
        if self.jobs[0].kind.alone:
            log.info("Trains alone, not in a stack: %s", self.jobs[0].kind.alone)
        if self.config.repeats > 1:
            log.info(
                "Repeats: seeds %d to %d, figures are means",
                *(self.config.seed, self.config.seed + self.config.repeats - 1),
            )
        device_name = torch.cuda.get_device_name(self.where) if self.where.type == "cuda" else None
        record.write_json(
            self.folder,
            "environment.json",
            record.environment(
                device=str(self.where), device_name=device_name, threads=self.threads, steps=how
            ),
        )

    def _epoch_ended(self, repeat: int, row: Epoch) -> None:
        self.histories[repeat].append(row)
        while self._epochs_of_all() > len(self.history):
            self._all_ended(self._next_epoch())

    def _epochs_of_all(self) -> int:
        """Epochs that every repeat has behind it; one that has stopped early waits for none."""
        going = [
            len(history) for history, job in zip(self.histories, self.jobs) if not job.exhausted
        ]
        return min(going) if going else max(map(len, self.histories))

    def _at(self, repeat: int, epoch: int) -> Epoch:
        """A repeat's figures at an epoch; once it has stopped early, those of what it kept."""
        history = self.histories[repeat]
        return (
            history[epoch - 1]
            if epoch <= len(history)
            else replace(self._kept(repeat), epoch=epoch, seconds=0)
        )

    def _kept(self, repeat: int) -> Epoch:
        """The epoch whose weights a repeat ends with."""
        return self.jobs[repeat].kept or self.histories[repeat][-1]

    def _next_epoch(self) -> Epoch:
        """The mean of the first epoch that has not been taken yet."""
        epoch = len(self.history) + 1
        return _mean([self._at(repeat, epoch) for repeat in range(len(self.jobs))])

    def _write(self, mean: Epoch) -> None:
        self.history.append(mean)
        record.write_history(self.folder, self.history)
        self.logger.epoch(mean)

    def _all_ended(self, mean: Epoch) -> None:
        """Takes an epoch that all repeats have finished, and decides on their mean."""
        self._write(mean)
        self.screen.end_epoch(mean)
        self._decide(mean)
        self._begin_epoch()

    def _decide(self, mean: Epoch) -> None:
        """Ends the training after an epoch that a pruner takes for the last, or that diverged."""
        unwanted = self.wanted is not None and not self.wanted(mean)
        self.pruned = unwanted and mean.epoch < self.config.trainer.epochs
        if self.pruned or not _finite(mean):
            for job in self.jobs:
                job.stop = True

    def _begin_epoch(self) -> None:
        if not all(job.stop for job in self.jobs):
            self.screen.begin_epoch(len(self.history) + 1)

    def finish(self) -> dict[str, Any]:
        """Complete the run folder; write its summary last.

        Returns:
            The contents of `summary.json`.

        Raises:
            TrialFailed: the loss or a weight became NaN or infinite; the folder is complete.
            Exception: the error that ended the training early.
        """
        for job in self.jobs:
            if job.error is not None:
                raise job.error
        self.screen.close()
        last = self.history[-1]
        finite = _finite(last)
        reason = None if finite else f"the loss became {last.train_loss} in epoch {last.epoch}"
        if finite and self.pruned:
            reason = f"pruned after epoch {last.epoch} of {self.config.trainer.epochs}"
        state = ("PRUNED" if reason else "COMPLETE") if finite else "FAILED"
        ended = {"state": state, "reason": reason}
        single = [
            self._figures(repeat, self.test and finite) for repeat in range(self.config.repeats)
        ]
        figures = single[0] if len(single) == 1 else _means(single)
        tested = figures["test_accuracy"]
        summary = {**ended, **figures, "started": self.started, "ended": time.time()}
        if self.config.repeats > 1:
            for repeat, one in enumerate(single):
                self._keep_repeat(repeat, {**ended, **one}, finite)
        elif finite:
            write_atomically(self.folder / "model.pt", _saved(self.jobs[0].trial.model))
        picture = run_plot.curves(self.history, _title(self.config))
        write_atomically(self.folder / "results.png", picture)
        record.write_json(self.folder, "summary.json", summary)
        for repeat in range(self.config.repeats):
            record.checkpoint(self.folder, repeat).unlink(missing_ok=True)
        self.logger.end(summary, self.folder / "results.png")
        if reason and not finite:
            raise TrialFailed(reason)
        if reason:
            log.info("%s", reason.capitalize())
        if self.early_stopping and len(single) == 1:
            log.info("Weights of epoch %d of %d kept", figures["kept_epoch"], figures["epochs"])
        if tested is not None:
            log.info("Final Test Accuracy: %.2f%%", 100 * tested)
        log.info("Run folder: %s", self.folder)
        return summary

    def _figures(self, repeat: int, test: bool) -> dict[str, Any]:
        """The final row of one repeat."""
        # One that was ahead of the others when they were stopped may have more.
        history = self.histories[repeat] = self.histories[repeat][: len(self.history)]
        last, best = self._kept(repeat), max(history, key=lambda row: row.val_accuracy)
        seconds = sum(row.seconds for row in history)
        images = len(self.data.train)
        tested: tuple[float | None, float | None] = (None, None)
        if test:
            assert self.data.test is not None
            model = self.jobs[repeat].trial.model
            tested = functional_model.evaluate(model.to(self.where), self.data.test)
        return {
            "name": self.config.name,
            "seed": self.configs[repeat].seed,
            "epochs": len(history),
            "train_loss": last.train_loss,
            "train_accuracy": last.train_accuracy,
            "val_loss": last.val_loss,
            "val_accuracy": last.val_accuracy,
            "best_val_accuracy": best.val_accuracy,
            "best_epoch": best.epoch,
            "kept_epoch": last.epoch,
            "test_loss": tested[0],
            "test_accuracy": tested[1],
            "validation": self.config.data.validation,
            "train_size": images,
            "parameters": self.parameters,
            "seconds": seconds,
            "images_per_second": images * len(history) / seconds,
        }

    def _keep_repeat(self, repeat: int, summary: dict[str, Any], finite: bool) -> None:
        folder = self.folder / f"repeat-{repeat}"
        folder.mkdir(exist_ok=True)  # a single run that was killed while it finished
        record.write_history(folder, self.histories[repeat])
        if finite:
            write_atomically(folder / "model.pt", _saved(self.jobs[repeat].trial.model))
        record.write_json(folder, "summary.json", summary)


def _finite(row: Epoch) -> bool:
    return math.isfinite(row.train_loss) and math.isfinite(row.val_loss)


def _mean(rows: Sequence[Epoch]) -> Epoch:
    """The mean of the repeats' rows of one epoch; seconds are their sum."""
    if len(rows) == 1:
        return rows[0]
    columns = {name: [asdict(row)[name] for row in rows] for name in asdict(rows[0])}
    values = {name: statistics.fmean(column) for name, column in columns.items()}
    return Epoch(**{**values, "epoch": rows[0].epoch, "seconds": sum(columns["seconds"])})


# Numbers of a final row that differ between repeats; seconds add up instead.
_AVERAGED = (
    *EPOCH_METRICS,
    *("best_val_accuracy", "test_loss", "test_accuracy", "images_per_second"),
)


def _means(single: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The final row of several repeats: means, and beside each its sample standard deviation."""
    figures = dict(single[0])
    for name in _AVERAGED:
        values = [one[name] for one in single]
        if None in values:
            continue
        finite = all(math.isfinite(value) for value in values)
        figures[name] = statistics.fmean(values)
        figures[f"{name}_std"] = statistics.stdev(values) if finite else math.nan
    figures["seconds"] = sum(one["seconds"] for one in single)
    figures["best_epoch"] = figures["kept_epoch"] = None
    figures["epochs"] = max(one["epochs"] for one in single)
    return {**figures, "repeats": len(single)}


def _title(config: Config) -> str:
    model, optimizer = (t.target.rsplit(".", 1)[-1] for t in (config.model, config.optimizer))
    seeds = f"seed {config.seed}"
    if config.repeats > 1:
        seeds = f"mean of seeds {config.seed} to {config.seed + config.repeats - 1}"
    return (
        f"{model}, {optimizer}, learning rate {config.optimizer.lr:g}, "
        f"batch {config.data.batch_size}, {seeds}"
    )


def _saved(model: nn.Module) -> bytes:
    """The model's state dict as `torch.save` writes it."""
    file = io.BytesIO()
    torch.save({name: t.cpu() for name, t in model.state_dict().items()}, file)
    return file.getvalue()
