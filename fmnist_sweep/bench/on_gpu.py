"""Trials on a CUDA device: alone and up to hundreds to a step, beside the published loop there."""

import statistics
from functools import partial

import torch

from fmnist_sweep.bench import training
from fmnist_sweep.bench.stacking import Stacks
from fmnist_sweep.bench.training import BATCH, Contender, in_turns, ratio
from fmnist_sweep.data import batches, source
from fmnist_sweep.training.lanes import Lane
from fmnist_sweep.training.scheduling import Scheduler

SIZES = (1, 8, 64, 256)
LOADERS = 8  # processes of the DataLoader that has some


def resident(data: batches.Protocol) -> Contender:
    """A loop by hand over images that lie on the device, PyTorch's fused Adam, no `.item()`."""
    device = data.train.pixels.device
    model = training.published_network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    images, validation = (batches.normalise(p.pixels) for p in (data.train, data.validation))
    total = torch.zeros((), device=device)

    def train() -> None:
        for chosen in torch.split(torch.randperm(len(images), device=device), BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(images[chosen]), data.train.labels[chosen]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total.add_(loss.detach())
        total.item()

    @torch.no_grad()
    def evaluate() -> None:
        (model(validation).argmax(1) == data.validation.labels).sum().item()

    return Contender("images on the GPU, a loop by hand", train, evaluate)


def measure(root: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of training and evaluation for a trial and epoch, by contender and round."""
    device = torch.device("cuda")
    config = training.published_protocol(str(source.locate(root).folder.parent.parent))
    data = batches.load(config.data, device, test=False)
    loading = {"num_workers": LOADERS, "pin_memory": True, "persistent_workers": True}
    many = f"published loop, {LOADERS} loading processes"
    peers = [
        training.published(config.data.root, device=device),
        training.published(config.data.root, name=many, device=device, **loading),
        resident(data),
    ]
    stacks = Stacks(data, config, Scheduler(Lane, 1, max_stack=max(SIZES)))

    with stacks.scheduler:
        work = {peer.name: peer.epoch for peer in peers}
        work |= {f"fmnist_sweep, {n} to a step": partial(stacks.epoch, n) for n in SIZES}
        return in_turns(work, rounds)


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and how many times as long as a trial of the largest stack each takes."""
    largest = list(seconds.values())[-1]
    lines = [
        f"| a trial and epoch on {torch.cuda.get_device_name()} | milliseconds | x the last |",
        "|---|---|---|",
    ]
    for name, values in seconds.items():
        median = f"{1000 * statistics.median(values):,.1f}"
        lines.append(f"| {name} | {median} | {ratio(values, largest, 1)} |")
    return "\n".join(lines)
