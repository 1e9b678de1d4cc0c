"""The progress of a run: lines in the log, and a progress bar on a terminal."""

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)


class ProgressLog:
    """The progress of one run, reported through `logging`, so that train.log has every line.

    Args:
        epochs: the number of epochs of the run.
        batches: the number of batches of an epoch.
        bar: show the batches of an epoch as a progress bar on the terminal instead of as lines.
    """

    def __init__(self, epochs: int, batches: int, bar: bool) -> None:
        self.epochs = epochs
        self.batches = batches
        self.bar = _make_bar() if bar else None
        self.task = self.bar.add_task("", total=batches) if self.bar else None

    def begin_epoch(self, epoch: int) -> None:
        """Report the beginning of an epoch, counted from 1; do nothing after the last epoch."""
        if epoch > self.epochs:
            return
        log.info("Epoch [%d/%d]", epoch, self.epochs)
        if self.bar and self.task is not None:
            self.bar.reset(self.task, description="", total=self.batches)
            self.bar.start()

    def batch(self, batch: int, loss: float, accuracy: float) -> None:
        """Report the number of batches done and the means over them; accuracy in [0, 1]."""
        if self.bar and self.task is not None:
            figures = f"Loss: {loss:.4f}, Accuracy: {accuracy:.2%}"
            self.bar.update(self.task, completed=batch, description=figures)
        else:
            log.info(
                "Batch [%d/%d], Loss: %.4f, Accuracy: %.2f%%",
                *(batch, self.batches, loss, 100 * accuracy),
            )

    def end_epoch(self, row: Epoch) -> None:
        """Report the figures of a finished epoch."""
        self.close()
        log.info(
            "Training   - Loss: %.4f, Accuracy: %.2f%%", row.train_loss, 100 * row.train_accuracy
        )
        log.info(
            "Validation - Loss: %.4f, Accuracy: %.2f%% (%.2f s)",
            *(row.val_loss, 100 * row.val_accuracy, row.seconds),
        )

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self.bar:
            self.bar.stop()


def _make_bar() -> Bar:
    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        transient=True,
        console=Console(file=sys.stdout),
    )
