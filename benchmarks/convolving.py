"""Time convolutional networks, beside a DataLoader with torchvision's transforms.

Every contender trains the same network with the same optimizer on batches of 128 augmented images
and takes turns with the others. The peer's transforms have the same parameters as ours.
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
# Batches of one turn.
NETWORKS = {"cnn": 60, "resnet18": 12}
PEER = "DataLoader"


def measure(root: str, rounds: int, threads: int) -> dict[str, Any]:
    """Images a second by network, contender and round."""
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
    """The usual loop, without a look at the loss in between."""
    from torchvision import datasets
    from torchvision.transforms import v2

    how = config.augment
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(28, padding=how.shift),
            v2.RandomHorizontalFlip(how.flip),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,), (0.5,)),
            v2.RandomErasing(how.erase, scale=(0.001, how.erase_size**2)),
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
    trial = build.build(config)
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
    """Medians, and ours in float32 as a multiple of each; all have had the same threads."""
    lines = [
        "| images a second | median | fmnist_sweep, float32, is times as fast |",
        "|---|---|---|",
    ]
    for network, rates in results.items():
        mine = rates[f"{OURS}, float32"]
        for name, each in rates.items():
            times = ratio(mine, each, 2)
            lines.append(f"| {network}, {name} | {statistics.median(each):,.0f} | {times} |")
    return "\n".join(lines)
