"""A quantity on an axis: what it is called, its unit, and which way is better."""

from dataclasses import dataclass

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
