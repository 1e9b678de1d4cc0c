"""The training that the rivals share: a careful loop in plain PyTorch, one thread a trial.

All examples lie scaled in memory and a batch is one indexing, because that takes less time than a
DataLoader. Adam is the fused one. The whole validation set is evaluated at once. `torch.compile` is
left out: a compilation takes longer than it saves within these searches.
"""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

EPOCHS = 50  # the most that a trial trains
# The default configuration, which every search tries first.
DEFAULTS = {"lr": 1e-3, "batch_size": 32, "width": 128}


@dataclass(frozen=True)
class Task:
    """The data, log file and seed of a search's trials.

    Attributes:
        data: the file of the scaled examples, see `benchmarks.searching.save_data`.
        log: the file that gets a line for every epoch, from all processes of the search.
        seed: the seed of the initial weights and of the order of the examples.
    """

    data: str
    log: str
    seed: int


@functools.cache
def load(path: str) -> tuple[torch.Tensor, ...]:
    """Return inputs float32 [n, 784] and labels int64 [n] for training and for validation.

    A process reads the file once.
    """
    parts: tuple[torch.Tensor, ...] = torch.load(path)
    return parts


class Training:
    """A trial: 784-width-width/2-10 units with ReLU, Adam, cross-entropy.

    Must be made in the thread that trains, because denormals are flushed for a thread.
    """

    def __init__(self, task: Task, lr: float, batch_size: int, width: int) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        torch.manual_seed(task.seed)
        self.log = Path(task.log)
        self.inputs, self.labels, self.val_inputs, self.val_labels = load(task.data)
        self.batch_size = batch_size
        self.model = nn.Sequential(
            nn.Linear(784, width),
            nn.ReLU(),
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, 10),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, fused=True)
        self.criterion = nn.CrossEntropyLoss()
        self.epochs, self.best = 0, 0.0

    def epoch(self) -> float:
        """Train and validate an epoch, log it, and return the trial's best accuracy so far."""
        for chosen in torch.split(torch.randperm(len(self.labels)), self.batch_size):
            self.optimizer.zero_grad()
            self.criterion(self.model(self.inputs[chosen]), self.labels[chosen]).backward()
            self.optimizer.step()
        self.epochs += 1
        accuracy = self._validate()
        self.best = max(self.best, accuracy)
        row = {"time": time.time(), "epoch": self.epochs, "accuracy": accuracy}
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return self.best

    @torch.inference_mode()
    def _validate(self) -> float:
        predicted = self.model(self.val_inputs).argmax(1)
        return float((predicted == self.val_labels).float().mean())


def suggest(trial: Any) -> dict[str, Any]:
    """Draw a configuration from the space of `search=mlp`, epochs left out, by an Optuna trial."""
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64, 128]),
        "width": trial.suggest_int("width", 64, 512, step=64),
    }
