"""A quantity on an axis: what it is called, its unit, and which way is better."""

import re
from dataclasses import dataclass

# What a trial's summary holds that a sweep can optimise; the first ones each epoch has.
EPOCH_METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


METRICS = (*EPOCH_METRICS, "best_val_accuracy", "seconds", "images_per_second", "parameters")


# Words of metrics that are better when higher, and when lower; of others nobody knows.
_HIGHER = ("acc", "accuracy", "auc", "auroc", "f1", "precision", "recall", "score", "reward", "r2")


_LOWER = ("loss", "error", "err", "rmse", "mse", "mae", "perplexity", "nll", "seconds", "time")


def direction(metric: str) -> str:
    """Which way a metric is better, `minimize` or `maximize`, as far as its name says.

    As in Optuna, lower is better where it says nothing.
    """
    words = re.split(r"[^a-z0-9]+", metric.lower())
    if metric == "images_per_second" or (words[-1] in _HIGHER):
        return "maximize"
    return "minimize"


def says_direction(metric: str) -> bool:
    """Whether a metric's name says which way it is better."""
    return re.split(r"[^a-z0-9]+", metric.lower())[-1] in (*_HIGHER, *_LOWER, "parameters")


NAMES = {
    "train_loss": "Training loss",
    "train_accuracy": "Training accuracy",
    "val_loss": "Validation loss",
    "val_accuracy": "Validation accuracy",
    "best_val_accuracy": "Best epoch's validation accuracy",
    "seconds": "Training time",
    "images_per_second": "Speed",
    "parameters": "Parameters",
}


@dataclass(frozen=True)
class Measure:
    """A quantity on an axis: its name, unit and which way is better.

    scale: what values in files are multiplied by to be shown (accuracies become per cent).
    """

    name: str
    direction: str

    @property
    def is_accuracy(self) -> bool:
        return self.name.endswith("accuracy")

    @property
    def scale(self) -> float:
        return 100.0 if self.is_accuracy else 1.0

    @property
    def unit(self) -> str:
        if self.is_accuracy:
            return "%"
        units = {"seconds": "s", "images_per_second": "images/s"}
        return units.get(self.name, "nats" if self.name.endswith("loss") else "")

    @property
    def label(self) -> str:
        """`Validation accuracy (%), higher is better`."""
        unit = f" ({self.unit})" if self.unit else ""
        better = "higher" if self.direction == "maximize" else "lower"
        return f"{NAMES.get(self.name, self.name)}{unit}, {better} is better"
