"""The metrics of this package's training: names, labels, units and directions.

To add a metric of each epoch:

1. Compute it in `engine.functional_model`, and pass it on in `engine.stack`.
2. Make it a field of `record.Epoch`, which is a column of `history.csv` and `curves.csv`.
3. Put its name into `EpochMetric`, its label into `LABELS` and its unit into `_UNITS`.
4. Return its final value in `task.trial`, and let `tables._SummaryFile` know it.
5. For a column of the ranking, add it to `ranking` and `page`.

A metric that only the summary has needs its name in `METRICS` and steps 4 and 5. The metrics of
other applications need nothing: what they report is recorded.

The name's last word says whether higher or lower is better. Accuracies are shown in per cent.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

# Metrics of each epoch.
EpochMetric = Literal[
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_macro_f1",
]
EPOCH_METRICS: tuple[str, ...] = get_args(EpochMetric)

# Metrics in a trial's summary, which a sweep can optimise.
METRICS = (*EPOCH_METRICS, "best_val_accuracy", "seconds", "images_per_second", "parameters")

LABELS = {
    "train_loss": "Training loss",
    "train_accuracy": "Training accuracy",
    "val_loss": "Validation loss",
    "val_accuracy": "Validation accuracy",
    "val_balanced_accuracy": "Balanced validation accuracy",
    "val_macro_f1": "Validation macro F1",
    "best_val_accuracy": "Best epoch's validation accuracy",
    "seconds": "Training time",
    "images_per_second": "Speed",
    "parameters": "Parameters",
}

_UNITS = {"seconds": "s", "images_per_second": "images/s"}

# Last words of metrics that are better when higher, and when lower.
_HIGHER = ("acc", "accuracy", "auc", "auroc", "f1", "precision", "recall", "score", "reward", "r2")
_LOWER = ("loss", "error", "err", "rmse", "mse", "mae", "perplexity", "nll", "seconds", "time")


def direction(metric: str) -> str:
    """Return `minimize` or `maximize`, as the metric's name suggests.

    The default is `minimize`, as in Optuna.
    """
    last_word = re.split(r"[^a-z0-9]+", metric.lower())[-1]
    if metric == "images_per_second" or last_word in _HIGHER:
        return "maximize"
    return "minimize"


def says_direction(metric: str) -> bool:
    """Return whether a metric's name tells its direction."""
    if metric in METRICS:
        return True
    last_word = re.split(r"[^a-z0-9]+", metric.lower())[-1]
    return last_word in (*_HIGHER, *_LOWER)


@dataclass(frozen=True)
class Measure:
    """A metric with its direction, as the quantity of an axis."""

    name: str
    direction: str

    @property
    def is_accuracy(self) -> bool:
        return self.name.endswith("accuracy")

    @property
    def scale(self) -> float:
        """The factor from values in files to shown values: accuracies become per cent."""
        return 100.0 if self.is_accuracy else 1.0

    @property
    def unit(self) -> str:
        if self.is_accuracy:
            return "%"
        return _UNITS.get(self.name, "nats" if self.name.endswith("loss") else "")

    @property
    def label(self) -> str:
        """The text on an axis: `Validation accuracy (%), higher is better`."""
        unit = f" ({self.unit})" if self.unit else ""
        better = "higher" if self.direction == "maximize" else "lower"
        return f"{LABELS.get(self.name, self.name)}{unit}, {better} is better"
