"""Time an epoch of training, compared with other implementations.

Every contender does the same work: the published network and optimizer, batches of 32, one epoch
over the 60,000 training images, one evaluation of the 10,000 test images. The contenders take
turns, so that a drift of the machine's speed affects all of them. Ratios are taken within a round.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from fmnist_sweep.engine import step
from fmnist_sweep.engine.chunk import Chunk
from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataSplits
from fmnist_sweep.task import build
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import Config, conf_folder
from fmnist_sweep.task.data import splits

BATCH = 32
CPU = torch.device("cpu")
PUBLISHED = "published loop (torchvision + DataLoader)"
OURS = "fmnist_sweep"


@dataclass
class Contender:
    """An implementation's epoch of training and its evaluation; both finish before they return."""

    name: str
    train: Callable[[], None]
    evaluate: Callable[[], None]

    def epoch(self) -> float:
        """Train and evaluate once; return the seconds."""
        return timed(self.train) + timed(self.evaluate)


def published_network() -> nn.Sequential:
    """Return the published network: 784-128-64-10 with ReLU."""
    layers = nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def loader_loop(
    name: str,
    training: Any,
    validation: Any,
    batch: int = BATCH,
    device: torch.device = CPU,
    **loading: Any,
) -> Contender:
    """Return the published loop over two data sets, with `.item()` after every step."""
    train_loader = torch.utils.data.DataLoader(training, batch, shuffle=True, **loading)
    val_loader = torch.utils.data.DataLoader(validation, batch, **loading)
    model = published_network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()

    def train() -> None:
        model.train()
        loss_sum, correct = 0.0, 0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            correct += (outputs.argmax(1) == labels).sum().item()

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        loss_sum, correct = 0.0, 0
        for images, labels in val_loader:
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            loss_sum += criterion(outputs, labels).item()
            correct += (outputs.argmax(1) == labels).sum().item()

    return Contender(name, train, evaluate)


def published(root: str, batch: int = BATCH, name: str = PUBLISHED, **where: Any) -> Contender:
    """Return `loader_loop` over torchvision's data set, with the published transforms."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    training, validation = (
        datasets.FashionMNIST(root, train=train, transform=transform) for train in (True, False)
    )
    return loader_loop(name, training, validation, batch, **where)


def tensors(data: DataSplits) -> Contender:
    """Return the published loop over images that are normalised once and kept in memory."""
    training, validation = (
        torch.utils.data.TensorDataset(BYTES_TO_UNIT(images.inputs), images.labels)
        for images in (data.train, data.validation)
    )
    return loader_loop("TensorDataset + DataLoader", training, validation)


def scikit_learn(data: DataSplits) -> Contender | None:
    """Return MLPClassifier with the same images and network; None without scikit-learn."""
    try:
        from sklearn.neural_network import MLPClassifier
    except ImportError:
        return None
    x, x_val = (BYTES_TO_UNIT(i.inputs).flatten(1).numpy() for i in (data.train, data.validation))
    y, y_val = data.train.labels.numpy(), data.validation.labels.numpy()
    model = MLPClassifier((128, 64), batch_size=BATCH, alpha=0.0, learning_rate_init=0.001)
    classes = list(range(10))

    def train() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on stopping before convergence
            model.partial_fit(x, y, classes=classes)

    return Contender(
        "scikit-learn MLPClassifier",
        train,
        lambda: model.score(x_val, y_val),
    )


def composed(*overrides: str) -> Config:
    """Compose a configuration from overrides, as `python -m fmnist_sweep.train` does."""
    with initialize_config_dir(conf_folder()):
        return parsed(compose("config", list(overrides)))


def published_protocol(root: str) -> Config:
    """Compose `experiment=seed`, the published protocol."""
    return composed("experiment=seed", f"data.root={root}")


def ours(data: DataSplits, config: Config, bf16: bool = False) -> Contender:
    """Return the engine, driven as the training command drives it."""
    trial = build.build(config, data.format, len(data.train))
    batch = config.data.batch_size
    steps = step.StepCache(trial, data.format, True, bf16, CPU)
    row = step.TrialState(0, trial, steps, -(-len(data.train) // batch))
    chunk = Chunk([row], steps, data.train, batch)

    def train() -> None:
        chunk.begin_epoch()
        chunk.run(chunk.batches)
        chunk.running_means()

    def evaluate() -> None:
        chunk.evaluate(data.validation)

    return Contender(OURS, train, evaluate)


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that a function takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure contenders in turns. An extra first turn, which is discarded, compiles and warms up.

    Returns:
        The figure of each round by contender.
    """
    figures: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-1, rounds):
        for name, contender in work.items():
            figure = contender()
            if turn >= 0:
                figures[name].append(figure)
    return figures


def epochs(root: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure an epoch of each contender.

    Args:
        threads: threads of the peers; fmnist_sweep uses one.

    Returns:
        Seconds of training (`train`) and evaluation (`evaluate`) of each round, by contender.
    """
    config = published_protocol(root)
    data = splits.load(config.data, CPU, test=False)
    torch.set_flush_denormal(True)
    candidates = [published(root), tensors(data), scikit_learn(data), ours(data, config)]
    contenders = [c for c in candidates if c is not None]
    seconds: dict[str, Any] = {c.name: {"train": [], "evaluate": []} for c in contenders}
    for turn in range(-1, rounds):
        for contender in contenders:
            torch.set_num_threads(1 if contender.name == OURS else threads)
            train, evaluate = timed(contender.train), timed(contender.evaluate)
            # The first turn compiles and fills caches.
            if turn >= 0:
                seconds[contender.name]["train"].append(train)
                seconds[contender.name]["evaluate"].append(evaluate)
    return seconds


def ratio(theirs: list[float], mine: list[float], digits: int = 1) -> str:
    """Return the median and range of the rounds' ratios as text."""
    ratios = [a / b for a, b in zip(theirs, mine)]
    median, least, most = (
        f"{value:.{digits}f}" for value in (statistics.median(ratios), min(ratios), max(ratios))
    )
    return f"{median} ({least}-{most})"


def table(seconds: dict[str, Any]) -> str:
    """Return the median seconds, and each contender's time relative to fmnist_sweep's."""
    lines = [
        "| one epoch | training s | evaluation s | training x ours | both x ours |",
        "|---|---|---|---|---|",
    ]

    def both(name: str) -> list[float]:
        return [a + b for a, b in zip(seconds[name]["train"], seconds[name]["evaluate"])]

    for name, row in seconds.items():
        medians = [f"{statistics.median(row[part]):.2f}" for part in ("train", "evaluate")]
        against = ratio(row["train"], seconds[OURS]["train"]), ratio(both(name), both(OURS))
        lines.append(f"| {' | '.join([name, *medians, *against])} |")
    return "\n".join(lines)
