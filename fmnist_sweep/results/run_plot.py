"""The picture of a run, drawn by matplotlib's object interface: no global state, no display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmnist_sweep.base.figures import Axes, Figure, as_label, png, ticker
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.results.record import Epoch

# Okabe and Ito's blue and vermilion, safe for colour blindness; markers serve grey prints.
TRAINING: dict[str, Any] = {"color": "#0072B2", "marker": "o"}
VALIDATION: dict[str, Any] = {"color": "#D55E00", "marker": "s"}


def draw(folder: Path, title: str) -> None:
    """Draw `results.png` into a run folder from its `history.csv`.

    Args:
        folder: the run folder.
        title: see `curves`.

    Raises:
        OSError, RecordError: there is no history, or the folder cannot be written.
    """
    history = [Epoch(**row) for row in record.read_history(folder)]  # type: ignore[arg-type]
    write_atomically(folder / "results.png", curves(history, title))


def curves(history: Sequence[Epoch], title: str) -> bytes:
    """Plot a run's training and validation loss and accuracy over its epochs.

    Args:
        history: the finished epochs, at least one.
        title: the title above both panels.

    Returns:
        The picture as PNG.
    """
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    losses = [row.train_loss for row in history], [row.val_loss for row in history]
    accuracies = [row.train_accuracy for row in history], [row.val_accuracy for row in history]
    _panel(loss_axes, epochs, *losses, label="Cross-entropy loss (lower is better)")
    _panel(accuracy_axes, epochs, *accuracies, label="Accuracy (higher is better)")
    accuracy_axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    figure.suptitle(as_label(title))
    return png(figure)


def _panel(
    axes: Axes,
    epochs: Sequence[int],
    training: Sequence[float],
    validation: Sequence[float],
    label: str,
) -> None:
    # Markers on long runs would run together.
    every = max(1, len(epochs) // 20)
    axes.plot(epochs, training, label="Training", markersize=4, markevery=every, **TRAINING)
    axes.plot(epochs, validation, label="Validation", markersize=4, markevery=every, **VALIDATION)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
