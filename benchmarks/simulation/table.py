"""Collect the learning curves of sweeps in one table, and time an epoch of each kind of network.

    python -m benchmarks.simulation.table alone    # a quarter of an hour, on an idle machine
    python -m benchmarks.simulation.table build multirun/curves0 multirun/curves1
    python -m benchmarks.simulation.table build --add multirun/curves2  # keeps the others

Both write into `benchmarks/curves`, where README.md describes the files.
"""

import argparse
import gzip
import io
import itertools
import re
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.commands import REPOSITORY, seconds_of
from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.task.data import source

FOLDER = REPOSITORY / "benchmarks" / "curves"
CURVES, ALONE = FOLDER / "mlp.csv.gz", FOLDER / "alone.csv"
# By column, the swept key.
KEYS = {"lr": "optimizer.lr", "batch_size": "data.batch_size", "width": "model.width"}
KIND = ["batch_size", "width"]  # what the seconds of an epoch depend on
# All kinds of conf/search/curves.yaml.
KINDS = tuple(itertools.product((16, 32, 64, 128), range(64, 513, 64)))
# By column, its decimals; there are at most 12,000 validation images.
DECIMALS = {"train_loss": 5, "val_loss": 5, "val_accuracy": 5, "seconds": 3}
ALONE_EPOCHS = 3
_TRAINED_ON = r"trained on (.+)"  # in README.md


def build(
    folders: Sequence[Path], alone: Path = ALONE, target: Path = CURVES, add: bool = False
) -> str:
    """Write the table of the finished trials of sweeps, and a README.md beside it.

    Args:
        folders: sweeps of `search=curves`. Trials with fewer epochs than the longest are left out.
        alone: the seconds that `measure_alone` has written; may be missing.
        target: the table to write.
        add: keep the curves that the table has.

    Returns:
        What the table holds, which is a part of README.md too.

    Raises:
        ReportError: a folder does not exist, or a run in it is not readable.
        ConfigError: no trial has finished.
    """
    runs = [run for folder in folders for run in _finished(folder)]
    if not runs:
        raise ConfigError("no finished trial in " + ", ".join(map(str, folders)))
    longest = max(len(run.history) for run in runs)
    whole = [run for run in runs if len(run.history) == longest]
    table = pd.concat([_curve(run) for run in whole], ignore_index=True)
    processors = [_processor(run.folder) for run in whole]
    if add and target.exists():
        table = pd.concat([read(target), table], ignore_index=True)
        table = table.drop_duplicates([*KEYS, "seed", "epoch"], ignore_index=True)
        known = re.search(_TRAINED_ON, target.with_name("README.md").read_text(encoding="utf-8"))
        processors = [*(known[1].split(" and ") if known else []), *processors]
    text = table.to_csv(index=False, lineterminator="\n").encode()
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, gzip.compress(text, mtime=0))
    found = _content(table, processors, skipped=len(runs) - len(whole), alone=alone)
    names = " ".join(f"multirun/{folder.name}" for folder in folders)
    write_atomically(target.with_name("README.md"), _readme(found, names))
    return found


def _finished(folder: Path) -> list[Run]:
    sweep = Sweep(folder)
    sweep.update()
    return [run for _, run in sorted(sweep.runs.items()) if run.state == "COMPLETE"]


def _curve(run: Run) -> pd.DataFrame:
    """Return a run's rows of the table, one per epoch."""
    history = pd.DataFrame(run.history)
    params = {column: run.params[key] for column, key in KEYS.items()}
    params["lr"] = float(f"{params['lr']:.6g}")
    return pd.DataFrame(
        {
            **{column: [value] * len(history) for column, value in params.items()},
            "seed": run.summary["seed"],
            "epoch": history["epoch"],
            **{column: history[column].round(digits) for column, digits in DECIMALS.items()},
        }
    )


def read(path: Path = CURVES) -> pd.DataFrame:
    """Return the table of curves: one row per configuration, seed and epoch."""
    return pd.read_csv(io.BytesIO(gzip.decompress(path.read_bytes())))


def read_alone(path: Path = ALONE) -> dict[tuple[int, int], float]:
    """Return the seconds of an epoch alone by batch size and width; empty if not measured."""
    if not path.exists():
        return {}
    rows = pd.read_csv(path)
    return {
        (int(batch), int(width)): float(seconds)
        for batch, width, seconds in zip(rows["batch_size"], rows["width"], rows["seconds"])
    }


def measure_alone(
    root: str, kinds: Iterable[tuple[int, int]] = KINDS, target: Path = ALONE
) -> dict[tuple[int, int], float]:
    """Time an epoch of a trial that trains alone, with one thread and compiled steps.

    Each kind is one command. The kinds that the file has already are not measured again.

    Args:
        root: data.root.
        kinds: batch sizes and widths.
        target: the file of the measurements; it is written after each kind.

    Returns:
        The file's content: by batch size and width the median seconds of the epochs after the
        first, with their evaluation.
    """
    rows = pd.read_csv(target).to_dict("records") if target.exists() else []
    known = {(row["batch_size"], row["width"]) for row in rows}
    for batch, width in kinds:
        if (batch, width) in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            seconds_of(
                folder, "-m", "fmnist_sweep.train", f"data.root={root}", "hydra.run.dir=run",
                f"data.batch_size={batch}", f"model.width={width}", "trainer.threads=1",
                f"trainer.epochs={ALONE_EPOCHS}", "trainer.compile=true", "trainer.device=cpu",
            )  # fmt: skip
            _, *epochs = record.read_history(Path(folder, "run"))
            processor = _processor(Path(folder, "run"))
        seconds = round(statistics.median(epoch["seconds"] for epoch in epochs), 3)
        rows.append({**dict(zip(KIND, (batch, width))), "seconds": seconds, "processor": processor})
        table = pd.DataFrame(rows).sort_values(KIND)
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, table.to_csv(index=False, lineterminator="\n"))
    return read_alone(target)


def _processor(run: Path) -> str:
    """Return the processor that a run was trained on, with the number of its cores."""
    made = record.read_json(run, "environment.json")
    return f"{made['processor']} with {made['cores']} cores"


def _content(table: pd.DataFrame, processors: Iterable[str], skipped: int, alone: Path) -> str:
    """Return as Markdown what is in the table."""
    curves = table.drop_duplicates([*KEYS, "seed"])
    seeds = curves.groupby("seed").size()
    several = int((curves.groupby(list(KEYS)).size() > 1).sum())
    best = table.nlargest(1, "val_accuracy").iloc[0]
    in_stacks = table.groupby(KIND)["seconds"].median()
    lines = [
        f"- {len(curves)} curves of {table['epoch'].max()} epochs; {skipped} shorter ones left out",
        f"- {len(curves.drop_duplicates(list(KEYS)))} configurations, {several} of them with "
        "several seeds; " + ", ".join(f"seed {seed}: {count}" for seed, count in seeds.items()),
        f"- learning rates from {table['lr'].min():.2g} to {table['lr'].max():.2g}; "
        f"{len(in_stacks)} of {len(KINDS)} kinds of batch size and width",
        f"- best validation accuracy {best['val_accuracy']:.4f}: lr {best['lr']:.3g}, batch size "
        f"{best['batch_size']:.0f}, width {best['width']:.0f}, epoch {best['epoch']:.0f}",
        f"- an epoch in the sweep took {in_stacks.min():.2f} to {in_stacks.max():.2f} s, the "
        f"median by kind; trained on {_joined(processors)}",
    ]
    seconds = read_alone(alone)
    if seconds:
        measured = _joined(pd.read_csv(alone)["processor"])
        lines.append(
            f"- an epoch alone took {min(seconds.values()):.2f} to {max(seconds.values()):.2f} s; "
            f"{len(seconds)} of {len(KINDS)} kinds, measured on {measured}"
        )
    return "\n".join(lines)


def _joined(texts: Iterable[Any]) -> str:
    return " and ".join(dict.fromkeys(map(str, texts)))


def _readme(content: str, sweeps: str) -> str:
    return f"""# Learning curves of the MLP

Validation curves of random configurations of the space of `search=mlp` on Fashion-MNIST, each with
a constant learning rate and without pruning. A shorter run is the beginning of a curve.
`python -m benchmarks.simulation` plays search strategies against them.
`python -m benchmarks.simulation.table` writes this folder, this file included.

{content}

`mlp.csv.gz` has one row per configuration, seed and epoch:

| column | content |
|---|---|
| `lr` | learning rate of Adam, 6 digits |
| `batch_size` | training examples per step |
| `width` | units of the first hidden layer |
| `seed` | seed of weights and batches |
| `epoch` | from 1 |
| `train_loss` | mean cross-entropy over the epoch's batches during training, nats |
| `val_loss`, `val_accuracy` | after the epoch, on the validation images; nats, and a share |
| `seconds` | of training and evaluation, beside other work; a stack's are divided by its trials |

`alone.csv` has for each kind, a batch size and a width, the `seconds` of an epoch of a trial that
trains alone with one thread, the first epoch left out, and the `processor`.

`conf/search/curves.yaml` has the commands of the sweeps. Then:

    python -m benchmarks.simulation.table alone
    python -m benchmarks.simulation.table build {sweeps}
"""


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation.table", description=__doc__
    )
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("build", help="write the table")
    make.add_argument("--add", action="store_true", help="keep the curves that the table has")
    make.add_argument("folders", nargs="+", type=Path, help="sweeps such as multirun/curves0")
    timing = actions.add_parser("alone", help="time an epoch of each kind")
    timing.add_argument("--root", help="data.root (default: $FMNIST_SWEEP_DATA, or data)")
    timing.add_argument("kinds", nargs="*", help="BATCHxWIDTH such as 32x128 (default: all)")
    options = parser.parse_args()
    command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.action == "build":
        print(build(options.folders, add=options.add))
        return
    try:
        kinds = [tuple(map(int, kind.split("x"))) for kind in options.kinds] or KINDS
        pairs = [(batch, width) for batch, width in kinds]
    except ValueError:
        raise ConfigError(f"{' '.join(options.kinds)}: not kinds such as 32x128") from None
    root = str(source.locate(options.root).folder.parent.parent.resolve())
    for (batch, width), seconds in sorted(measure_alone(root, pairs).items()):
        print(f"batch size {batch}, width {width}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
