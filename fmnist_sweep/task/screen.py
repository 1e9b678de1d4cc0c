"""What a run says: lines for a log or a pipe, a progress bar for a terminal."""

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)


class Screen:
    """Tells of one run's progress, through `logging`, so that train.log holds every line.

    With `bar` the batches within an epoch move a bar on the terminal instead of adding lines.
    """

    def __init__(self, epochs: int, batches: int, bar: bool) -> None:
        self.epochs = epochs
        self.batches = batches
        self.bar = _bar() if bar else None
        self.task = self.bar.add_task("", total=batches) if self.bar else None

    def begin_epoch(self, epoch: int) -> None:
        """Says which epoch begins; does nothing after the last one."""
        if epoch > self.epochs:
            return
        log.info("Epoch [%d/%d]", epoch, self.epochs)
        if self.bar and self.task is not None:
            self.bar.reset(self.task, description="", total=self.batches)
            self.bar.start()

    def batch(self, batch: int, loss: float, accuracy: float) -> None:
        """Running means over the epoch's batches so far; accuracy in [0, 1]."""
        if self.bar and self.task is not None:
            figures = f"Loss: {loss:.4f}, Accuracy: {accuracy:.2%}"
            self.bar.update(self.task, completed=batch, description=figures)
        else:
            log.info(
                "Batch [%d/%d], Loss: %.4f, Accuracy: %.2f%%",
                *(batch, self.batches, loss, 100 * accuracy),
            )

    def end_epoch(self, row: Epoch) -> None:
        """The figures of a finished epoch."""
        self.close()
        log.info(
            "Training   - Loss: %.4f, Accuracy: %.2f%%", row.train_loss, 100 * row.train_accuracy
        )
        log.info(
            "Validation - Loss: %.4f, Accuracy: %.2f%% (%.2f s)",
            *(row.val_loss, 100 * row.val_accuracy, row.seconds),
        )

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self.bar:
            self.bar.stop()


def _bar() -> Bar:
    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        transient=True,
        console=Console(file=sys.stdout),
    )
