"""Time convolutional networks, compared with a DataLoader with torchvision's transforms.

Every contender trains the same network with the same optimizer on batches of 128 augmented images.
The contenders take turns. The peer's transforms have the same parameters as those of fmnist_sweep.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.training import CPU, OURS, composed, in_turns, ours, ratio, timed
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.data import splits

BATCH = 128
NETWORKS = {"cnn": 60, "resnet18": 12}  # batches of an epoch
PEER = "DataLoader"


def measure(root: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure the training speed of each network.

    Args:
        threads: threads of all contenders, and processes of one DataLoader.

    Returns:
        Images per second of each round, by network and contender.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return {name: _rates(root, name, rounds, threads) for name in NETWORKS}


def _rates(root: str, network: str, rounds: int, threads: int) -> dict[str, list[float]]:
    size = NETWORKS[network] * BATCH
    config = _config(root, network, size)
    data = splits.load(config.data, CPU, test=False)
    contenders = {
        f"{PEER}, in the training process": _peer(config, 0),
        f"{PEER}, {threads} workers": _peer(config, threads),
        f"{OURS}, float32": ours(data, config).train,
    }
    if build.has_bf16(CPU):
        contenders[f"{OURS}, bf16"] = ours(data, config, bf16=True).train
    return in_turns({n: partial(_rate, size, train) for n, train in contenders.items()}, rounds)


def _rate(images: int, train: Callable[[], None]) -> float:
    return images / timed(train)


def _config(root: str, network: str, size: int) -> Config:
    sizes = f"data.root={root}", f"data.train_size={size}", f"data.batch_size={BATCH}"
    return composed(f"model={network}", "augment=standard", "optimizer=sgd", *sizes)


def _peer(config: Config, workers: int) -> Callable[[], None]:
    """Return a function that trains an epoch with the usual loop, without reading the loss."""
    from torchvision import datasets
    from torchvision.transforms import v2

    augment = config.augment
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(28, padding=augment.shift),
            v2.RandomHorizontalFlip(augment.flip),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,), (0.5,)),
            v2.RandomErasing(augment.erase, scale=(0.001, augment.erase_size**2)),
        ]
    )
    images = datasets.FashionMNIST(config.data.root, train=True, transform=transform)
    assert config.data.train_size
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(config.data.train_size)),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    data = splits.describe(config.data)
    trial = build.build(config, data.format, data.training)
    model, optimizer = trial.model, trial.optimizer(trial.model.parameters(), **trial.arguments)
    criterion = nn.CrossEntropyLoss()

    def train() -> None:
        model.train()
        for pixels, labels in loader:
            optimizer.zero_grad()
            criterion(model(pixels), labels).backward()
            optimizer.step()

    return train


def table(results: dict[str, Any]) -> str:
    """Return the median speeds, and the speed of fmnist_sweep in float32 relative to each."""
    lines = [
        "| images a second | median | fmnist_sweep, float32, is times as fast |",
        "|---|---|---|",
    ]
    for network, rates in results.items():
        mine = rates[f"{OURS}, float32"]
        for name, values in rates.items():
            times = ratio(mine, values, 2)
            lines.append(f"| {network}, {name} | {statistics.median(values):,.0f} | {times} |")
    return "\n".join(lines)
