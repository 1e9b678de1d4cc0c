"""Train one trial: load the data, build the model, train, and complete the run folder."""

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

from fmnist_sweep.base.command import import_beside
from fmnist_sweep.base.errors import ConfigError, TrialFailed
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.base.processes import cores_from_environment
from fmnist_sweep.engine import checkpoint, functional_model
from fmnist_sweep.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    OtherConfiguration,
    State,
)
from fmnist_sweep.engine.compiling import worth_compiling
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.engine.training_jobs import TrainingJob, train
from fmnist_sweep.results import record
from fmnist_sweep.results.metrics import EPOCH_METRICS
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.task import Decision
from fmnist_sweep.task import build, picture
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.data import splits
from fmnist_sweep.task.loggers import Logger
from fmnist_sweep.task.screen import ProgressLog

log = logging.getLogger(__name__)

# Seconds of training between two checkpoints if `trainer.checkpoint=auto`.
AUTO_CHECKPOINT = 60.0


def checkpoint_interval(config: Config) -> float:
    """Return the seconds of training between two checkpoints; infinity for none."""
    wish = config.trainer.checkpoint
    return {False: math.inf, True: 0.0, "auto": AUTO_CHECKPOINT}[wish]


def run(
    config: Config, folder: Path, *, test: bool, on_epoch: Callable[[Epoch], Decision] | None = None
) -> dict[str, Any]:
    """Train a trial in this process and complete its run folder: `prepare`, `train`, `finish`.

    Args:
        config, folder, test, on_epoch: see `prepare`.

    Returns:
        The contents of `summary.json`.

    Raises:
        ConfigError, DataError: nothing was trained; an existing run is left alone.
        TrialFailed: the loss or a weight became NaN or infinite; history and summary are written.
    """
    training = prepare(config, folder, test=test, on_epoch=on_epoch)
    import_beside("fmnist_sweep.results.run_plot")
    try:
        train(training.jobs)
    finally:
        training.history_file.flush()
    return training.finish()


def prepare(
    config: Config,
    folder: Path,
    *,
    test: bool,
    on_epoch: Callable[[Epoch], Decision] | None = None,
    together: int = 1,
    in_population: bool = False,
    state: State | None = None,
) -> "Training":
    """Load the data, build the models and resume from checkpoints; train nothing yet.

    An interrupted run resumes from its last checkpoint, in this folder or in that of an earlier
    attempt, and gets the same numbers as without the interruption.

    With `repeats` > 1, train the configuration on that many seeds, from `seed` on, side by side.
    The figures of the run folder are means over the seeds; each seed has a folder in it, `repeat-0`
    first.

    Args:
        config: the trial's configuration.
        folder: the run folder, in which Hydra has written its log and configuration.
        test: evaluate the model on the test images after the last epoch. A sweep never does.
        on_epoch: called with each finished epoch; decides whether the trial continues.
        together: the number of trials that are trained at once; see `worth_compiling`.
        in_population: the trial belongs to a population, which is saved as a whole; it has no
            checkpoint.
        state: the state of such a trial to resume from; None to begin.

    Raises:
        ConfigError, DataError: the trial cannot be trained; an existing run is left alone.
    """
    check_folder(config, folder)
    device = build.device(config)
    threads = min(config.trainer.threads, cores_from_environment() or config.trainer.threads)
    if threads < config.trainer.threads:
        log.info("trainer.threads=%d: OMP_NUM_THREADS leaves %d", config.trainer.threads, threads)
    torch.set_num_threads(threads)
    # Dead ReLU units let Adam's moments decay into denormals, which slow a step several times.
    torch.set_flush_denormal(True)
    data = splits.load(config.data, device, test)
    _check_same_data(folder, data)
    training = Training(
        config, folder, data, device, threads, test, on_epoch, together, not in_population
    )
    training.resume(state)
    return training


def check_folder(config: Config, folder: Path) -> None:
    """Refuse a folder in which training would destroy earlier results.

    Raises:
        ConfigError: the folder holds a sweep, a finished run, or an interrupted run of another
            configuration.
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
                "name another folder, or give the same keys to resume"
            ) from None
        except (CheckpointError, OSError):  # logged by `Training.resume`
            pass


def _check_same_data(folder: Path, data: DataSplits) -> None:
    """Refuse to resume a training that began with other examples.

    Raises:
        ConfigError: the fingerprint of the data differs from that of the interrupted attempt.
    """
    for attempt in (folder, *record.earlier_attempts(folder)):
        if not record.checkpoints(attempt) or not (attempt / "environment.json").exists():
            continue
        about = record.read_json(attempt, "environment.json").get("data", {})
        began_with = about.get("fingerprint")
        if began_with not in (None, data.about["fingerprint"]):
            raise ConfigError(
                f"{attempt}: was interrupted while it trained on other data under the same name "
                f"({began_with[:12]}, now {data.about['fingerprint'][:12]}); name another folder, "
                "or put the data back"
            )


class Training:
    """The training of all repeats of one configuration, and the run folder that it writes.

    jobs: one job for each repeat. Train them with `training_jobs.train`, alone or together with the
        jobs of other trials; then call `finish`.
    draw: draws `results.png`, given the run folder and a title; another process may do so later.
    history_file: flush it if the training ends without `finish`.
    """

    draw: Callable[[Path, str], None] = staticmethod(picture.draw)

    def __init__(
        self,
        config: Config,
        folder: Path,
        data: DataSplits,
        device: torch.device,
        threads: int,
        test: bool,
        on_epoch: Callable[[Epoch], Decision] | None,
        together: int,
        has_checkpoint: bool,
    ) -> None:
        self.started = time.time()
        self.config = config
        self.folder = folder
        self.logger = Logger(config, folder)
        self.data = data
        self.device = device
        self.threads = threads
        self.test = test
        self.on_epoch = on_epoch
        self.history: list[Epoch] = []
        self.history_file = record.HistoryFile(folder)
        seeds = [config.seed + repeat for repeat in range(config.repeats)]
        self.configs = [config.model_copy(update={"seed": seed}) for seed in seeds]
        self.histories: list[list[Epoch]] = [[] for _ in seeds]
        self.decision = Decision.CONTINUE  # other than that once a trial is stopped before its end
        steps = math.ceil(len(data.train) / config.data.batch_size)
        self.progress = ProgressLog(
            config.trainer.epochs, steps, bar=on_epoch is None and sys.stdout.isatty()
        )
        trials = [
            replace(
                build.build(seeded, data.format, len(data.train)),
                checkpoint=self._checkpoint(repeat, seeded) if has_checkpoint else None,
            )
            for repeat, seeded in enumerate(self.configs)
        ]
        self.early_stopping = trials[0].recipe.early_stopping is not None
        self.parameters = sum(p.numel() for p in trials[0].model.parameters())
        compile, steps_note = worth_compiling(
            config.trainer.compile,
            config.trainer.epochs * steps,
            self.parameters,
            device,
            config.repeats * together,
        )
        self.jobs = [self._make_job(repeat, trial, compile) for repeat, trial in enumerate(trials)]
        self._report_setup(steps_note)

    def _checkpoint(self, repeat: int, config: Config) -> Checkpoint:
        # A trial that is paused has a checkpoint in any case.
        path = record.checkpoint(self.folder, repeat)
        return Checkpoint(path, config.identity, checkpoint_interval(config))

    def resume(self, state: State | None = None) -> None:
        """Resume an interrupted run: read the epochs that its checkpoints hold.

        Args:
            state: the state of a trial without checkpoints.
        """
        if state is not None:
            self._take_history(0, state)
        for repeat, job in enumerate(self.jobs):
            target = job.trial.checkpoint
            path = self._newest_checkpoint(repeat)
            if target is None or path is None:
                continue
            try:
                state = checkpoint.read(path, target.configuration)
            except (CheckpointError, OSError) as error:
                log.warning("%s %s; training begins anew", path, error)
                continue
            target.resume = path
            self._take_history(repeat, state)
            log.info("Resuming after epoch %d, from %s", len(self.histories[repeat]), path)
        while self._completed_epochs() > len(self.history):
            self._append(self._next_mean())
        if self.history:  # the interruption may have come before this epoch was decided on
            self._check_stop(self.history[-1])
        self._begin_epoch()

    def _take_history(self, repeat: int, state: State) -> None:
        history = self.histories[repeat] = [Epoch(*row) for row in state["history"]]
        self.jobs[repeat].kept = history[state["kept_epoch"] - 1]

    def _newest_checkpoint(self, repeat: int) -> Path | None:
        """Return the newest checkpoint of a repeat, of this attempt or an earlier one."""
        folders = [self.folder, *record.earlier_attempts(self.folder)]
        paths = [record.checkpoint(folder, repeat) for folder in folders]
        return next((path for path in paths if path.exists()), None)

    def _make_job(self, repeat: int, trial: Trial, compile: bool) -> TrainingJob:
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
            # Only the first repeat reports its batches.
            on_batches=lambda progress: (
                self.progress.batch(progress.batch, progress.loss, progress.accuracy)
                if first
                else None
            ),
        )

    def _report_setup(self, steps_note: str) -> None:
        model = self.jobs[0].trial.model
        log.info("Device: %s, %d thread(s), %s", self.device, self.threads, steps_note)
        log.info("Model: %s with %s parameters", type(model).__name__, f"{self.parameters:,}")
        if self.jobs[0].stack_key.why_alone:
            log.info("Trains alone, not in a stack: %s", self.jobs[0].stack_key.why_alone)
        if self.config.repeats > 1:
            log.info(
                "Repeats: seeds %d to %d, figures are means",
                *(self.config.seed, self.config.seed + self.config.repeats - 1),
            )
        device_name = (
            torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        )
        record.write_json(
            self.folder,
            "environment.json",
            record.environment(
                device=str(self.device),
                device_name=device_name,
                threads=self.threads,
                steps=steps_note,
                data=dict(self.data.about),
            ),
        )

    def _epoch_ended(self, repeat: int, row: Epoch) -> None:
        self.histories[repeat].append(row)
        while self._completed_epochs() > len(self.history):
            mean = self._next_mean()
            self._append(mean)
            self.progress.end_epoch(mean)
            self._check_stop(mean)
            self._begin_epoch()

    def _completed_epochs(self) -> int:
        """Return the epochs that all repeats have completed, except those that stopped early.

        If all repeats have stopped early, return the epochs of the longest.
        """
        running = [
            len(history) for history, job in zip(self.histories, self.jobs) if not job.exhausted
        ]
        return min(running) if running else max(map(len, self.histories))

    def _row(self, repeat: int, epoch: int) -> Epoch:
        """Return a repeat's figures of an epoch; after early stopping, those of its kept epoch."""
        history = self.histories[repeat]
        return (
            history[epoch - 1]
            if epoch <= len(history)
            else replace(self._kept_row(repeat), epoch=epoch, seconds=0)
        )

    def _kept_row(self, repeat: int) -> Epoch:
        """Return the figures of the epoch whose weights a repeat keeps."""
        kept = self.jobs[repeat].kept if self.early_stopping else None
        return kept or self.histories[repeat][-1]

    def _next_mean(self) -> Epoch:
        """Return the mean figures of the first epoch that is not in the history yet."""
        epoch = len(self.history) + 1
        return _mean_row([self._row(repeat, epoch) for repeat in range(len(self.jobs))])

    def _append(self, mean: Epoch) -> None:
        self.history.append(mean)
        self.history_file.update(self.history)
        self.logger.epoch(mean)

    def _check_stop(self, mean: Epoch) -> None:
        """Stop the training after an epoch if the trial is pruned or has diverged."""
        decision = self.on_epoch(mean) if self.on_epoch else Decision.CONTINUE
        if mean.epoch < self.config.trainer.epochs and _finite(mean):
            self.decision = decision
        if self.decision != Decision.CONTINUE or not _finite(mean):
            for job in self.jobs:
                job.stop = True
                job.pause = self.decision == Decision.PAUSE

    def _begin_epoch(self) -> None:
        if not all(job.stop for job in self.jobs):
            self.progress.begin_epoch(len(self.history) + 1)

    def finish(self) -> dict[str, Any]:
        """Complete the run folder; write its summary last.

        Returns:
            The contents of `summary.json`.

        Raises:
            TrialFailed: the loss or a weight became NaN or infinite; the folder is complete.
            Exception: the error that ended the training early.
        """
        self.history_file.flush()
        for job in self.jobs:
            if job.error is not None:
                raise job.error
        self.progress.close()
        last = self.history[-1]
        finite = _finite(last)
        reason = None if finite else f"the loss became {last.train_loss} in epoch {last.epoch}"
        state = _STATES[self.decision] if finite else "FAILED"
        if finite and state != "COMPLETE":
            reason = f"{state.lower()} after epoch {last.epoch} of {self.config.trainer.epochs}"
        ending = {"state": state, "reason": reason}
        repeats = [
            self._figures(repeat, self.test and state == "COMPLETE")
            for repeat in range(self.config.repeats)
        ]
        figures = repeats[0] if len(repeats) == 1 else _mean_figures(repeats)
        test_accuracy = figures["test_accuracy"]
        summary = {**ending, **figures, "started": self.started, "ended": time.time()}
        if state == "PAUSED":  # the rest is work for the trial's end
            return self._pause(summary)
        if self.config.repeats > 1:
            for repeat, own in enumerate(repeats):
                self._write_repeat(repeat, {**ending, **own}, finite)
        elif finite:
            write_atomically(self.folder / "model.pt", _state_dict_bytes(self.jobs[0].trial.model))
        # A tracker takes a copy of the picture when the run ends.
        draw = picture.draw if self.logger.backend else self.draw
        draw(self.folder, picture.title(self.config))
        record.write_json(self.folder, "summary.json", summary)
        for repeat in range(self.config.repeats):
            record.checkpoint(self.folder, repeat).unlink(missing_ok=True)
        self.logger.end(summary, self.folder / "results.png")
        if reason and not finite:
            raise TrialFailed(reason)
        if reason:
            log.info("%s", reason.capitalize())
        if self.early_stopping and len(repeats) == 1:
            log.info("Weights of epoch %d of %d kept", figures["kept_epoch"], figures["epochs"])
        if test_accuracy is not None:
            log.info("Final Test Accuracy: %.2f%%", 100 * test_accuracy)
        log.info("Run folder: %s", self.folder)
        return summary

    def _pause(self, summary: dict[str, Any]) -> dict[str, Any]:
        log.info("%s", summary["reason"].capitalize())
        record.write_json(self.folder, "summary.json", summary)
        self.logger.end(summary, self.folder / "results.png")
        return summary

    def _figures(self, repeat: int, test: bool) -> dict[str, Any]:
        """Return the final figures of one repeat."""
        # A repeat that was ahead of the others when they were stopped may have more epochs.
        history = self.histories[repeat] = self.histories[repeat][: len(self.history)]
        last, best = self._kept_row(repeat), max(history, key=lambda row: row.val_accuracy)
        seconds = sum(row.seconds for row in history)
        images = len(self.data.train)
        tested: tuple[float | None, float | None] = (None, None)
        if test and self.data.test is not None:
            model = self.jobs[repeat].trial.model
            found = functional_model.evaluate(
                model.to(self.device), self.data.test, self.data.format.scaling
            )
            tested = found.loss, found.accuracy
        return {
            "name": self.config.name,
            "seed": self.configs[repeat].seed,
            "epochs": len(history),
            "train_loss": last.train_loss,
            "train_accuracy": last.train_accuracy,
            "val_loss": last.val_loss,
            "val_accuracy": last.val_accuracy,
            "val_balanced_accuracy": last.val_balanced_accuracy,
            "val_macro_f1": last.val_macro_f1,
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

    def _write_repeat(self, repeat: int, summary: dict[str, Any], finite: bool) -> None:
        folder = self.folder / f"repeat-{repeat}"
        folder.mkdir(exist_ok=True)  # exists if the run was killed while it finished
        record.write_history(folder, self.histories[repeat])
        if finite:
            write_atomically(folder / "model.pt", _state_dict_bytes(self.jobs[repeat].trial.model))
        record.write_json(folder, "summary.json", summary)


_STATES = {
    Decision.CONTINUE: "COMPLETE",
    Decision.PAUSE: "PAUSED",
    Decision.PRUNE: "PRUNED",
}


def _finite(row: Epoch) -> bool:
    return math.isfinite(row.train_loss) and math.isfinite(row.val_loss)


def _mean_row(rows: Sequence[Epoch]) -> Epoch:
    """Return the mean of the repeats' rows of one epoch; seconds are summed."""
    if len(rows) == 1:
        return rows[0]
    columns = {name: [asdict(row)[name] for row in rows] for name in asdict(rows[0])}
    values = {
        name: None if None in column else statistics.fmean(column)
        for name, column in columns.items()
    }
    return Epoch(**{**values, "epoch": rows[0].epoch, "seconds": sum(columns["seconds"])})


# The final figures that are averaged over repeats.
_AVERAGED = (
    *EPOCH_METRICS,
    *("best_val_accuracy", "test_loss", "test_accuracy", "images_per_second"),
)


def _mean_figures(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the final figures of several repeats: means and sample standard deviations.

    Seconds are summed; `epochs` is the largest.
    """
    figures = dict(repeats[0])
    for name in _AVERAGED:
        values = [own[name] for own in repeats]
        if None in values:
            continue
        finite = all(math.isfinite(value) for value in values)
        figures[name] = statistics.fmean(values)
        figures[f"{name}_std"] = statistics.stdev(values) if finite else math.nan
    figures["seconds"] = sum(own["seconds"] for own in repeats)
    figures["best_epoch"] = figures["kept_epoch"] = None
    figures["epochs"] = max(own["epochs"] for own in repeats)
    return {**figures, "repeats": len(repeats)}


def _state_dict_bytes(model: nn.Module) -> bytes:
    """Return the model's state dict as the bytes that `torch.save` writes."""
    file = io.BytesIO()
    torch.save({name: t.cpu() for name, t in model.state_dict().items()}, file)
    return file.getvalue()
