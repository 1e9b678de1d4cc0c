"""Compare searches: the best validation accuracy against the seconds of the whole command.

All search the space of `search=mlp` on Fashion-MNIST, with the project's split and scaling, on two
cores: fmnist_sweep, Ray Tune, Optuna alone and Hydra's stock Optuna sweeper. The best accuracy is
that of any epoch of any trial. The rivals' commands are in `benchmarks.rivals`; their examples are
read, split and scaled for them beforehand.

`python -m benchmarks.searching --help` has the options. A run with a result is not done again.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import search_runs, training
from benchmarks.commands import REPOSITORY
from benchmarks.search_results import picture, table
from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.task.data import source, splits

__all__ = ["CONTENDERS", "Contender", "measure", "ours", "picture", "table"]

RESULTS = "results.json"
DATA = "data.pt"


@dataclass(frozen=True)
class Run:
    """A run of a contender. Paths are absolute.

    Attributes:
        root: the data's root.
        data: the file for the rivals.
        folder: the working directory.
        seed: the seed of sampler and training.
        seconds: the time limit.
    """

    root: str
    data: str
    folder: Path
    seed: int
    seconds: float


@dataclass(frozen=True)
class Contender:
    """A search.

    Attributes:
        arguments: returns Python's arguments for a run.
        checkout: the repository that Python imports from.
        variables: returns environment variables for a run; by default those of the rivals.
    """

    arguments: Callable[[Run], list[str]]
    checkout: Path = REPOSITORY
    variables: Callable[[Run], dict[str, str]] = lambda run: {
        "OMP_NUM_THREADS": "1",
        "JOBLIB_TEMP_FOLDER": str(run.folder),
    }


def ours(
    checkout: Path = REPOSITORY, overrides: Sequence[str] = (), cold: bool = False
) -> Contender:
    """Return fmnist_sweep's search.

    Args:
        checkout: the repository to run.
        overrides: of the configuration, after the benchmark's own.
        cold: begin each run with an empty cache, so that every step is compiled anew.
    """

    def arguments(run: Run) -> list[str]:
        return [
            "-m", "fmnist_sweep.train", "-m", "search=mlp", "name=search", f"data.root={run.root}",
            f"hydra.sweeper.timeout={run.seconds:g}", "hydra.sweeper.n_trials=1000",
            f"seed={run.seed}", f"hydra.sweeper.sampler.seed={run.seed}", *overrides,
        ]  # fmt: skip

    def empty_caches(run: Run) -> dict[str, str]:
        names = "FMNIST_SWEEP_CACHE", "TORCHINDUCTOR_CACHE_DIR"
        return {name: str(run.folder / name.lower()) for name in names}

    return Contender(arguments, checkout.absolute(), empty_caches if cold else lambda run: {})


def rival(module: str, *settings: str) -> Contender:
    """Return a rival's search.

    Args:
        module: its module in `benchmarks.rivals`.
        settings: further arguments of its command.
    """

    def arguments(run: Run) -> list[str]:
        log = str(run.folder / search_runs.LOG)
        return ["-m", f"benchmarks.rivals.{module}", run.data, log, str(run.seed), *settings]

    return Contender(arguments)


def _stock(run: Run) -> list[str]:
    seed, log = run.seed, run.folder / search_runs.LOG
    keys = f"data={run.data}", f"log={log}", f"seed={seed}", f"hydra.sweeper.sampler.seed={seed}"
    return ["-m", "benchmarks.rivals.stock_sweeper", "-m", *keys]


CONTENDERS = {
    "ours": ours(),
    "ours-cold": ours(cold=True),
    "ray": rival("ray_search", "2", "3"),
    "ray-patient": rival("ray_search", "5", "3"),
    "optuna": rival("optuna_search", "median"),
    "optuna-halving": rival("optuna_search", "halving"),
    "optuna-hyperband": rival("optuna_search", "hyperband"),
    "stock": Contender(_stock),
}


def measure(
    root: str,
    seeds: Sequence[int],
    seconds: float,
    contenders: Mapping[str, Contender],
    out: Path,
) -> dict[str, Any]:
    """Run the contenders in turns, seed by seed, and save each result at once.

    Args:
        root: the data's root.
        seeds: the seeds of the runs of each contender.
        seconds: the time limit of a run.
        contenders: the searches by name.
        out: the folder of the results and of the runs. Results in it are kept, also those of other
            contenders and seeds; the folders of runs that were interrupted are replaced.

    Returns:
        `seconds`; `runs`: by contender and seed, the results of `search_runs.run`.

    Raises:
        ConfigError: the folder's results have another time limit.
        Error: a contender failed; its folder has the output.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / RESULTS
    results: dict[str, Any] = {"seconds": seconds, **record.environment(device="cpu"), "runs": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    if results["seconds"] != seconds:
        raise ConfigError(f"{file}: has runs of {results['seconds']:g} s; choose another --out")
    data = save_data(root, out / DATA)
    for seed in seeds:
        for name, contender in contenders.items():
            runs = results["runs"].setdefault(name, {})
            if str(seed) in runs:
                continue
            folder = (out / f"{name}-{seed}").absolute()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run = Run(str(Path(root).absolute()), str(data.absolute()), folder, seed, seconds)
            variables = {"PYTHONPATH": str(contender.checkout), **contender.variables(run)}
            found = search_runs.run(contender.arguments(run), variables, folder, seconds)
            runs[str(seed)] = found
            write_atomically(file, json.dumps(results, indent=1) + "\n")
            best = found["curve"][-1][1] if found["curve"] else 0.0
            print(f"{folder.name}: {best:.4f}, {found['trials']} trials, {found['epochs']} epochs")
    return results


def save_data(root: str, file: Path) -> Path:
    """Save the scaled examples of the project's split for the rivals, and return the file.

    Args:
        root: the data's root.
        file: gets inputs float32 [n, 784] and labels int64 [n] for training and for validation.
    """
    config = training.composed(f"data.root={root}").data
    data = splits.load(config, training.CPU, test=False)
    parts = []
    for part in (data.train, data.validation):
        inputs, labels = part.slice(0, len(part))
        parts += [data.format.scaling(inputs).flatten(1), labels.clone()]
    torch.save(tuple(parts), file)
    return file


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.searching", description=__doc__)
    parser.add_argument("--root", help="data.root (default: $FMNIST_SWEEP_DATA, or data)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--seconds", type=float, default=500, help="limit of a run (default: 500)")
    parser.add_argument(
        "--contenders",
        default="ours,ray,optuna,stock",
        help=f"some of {','.join(CONTENDERS)} (default: ours,ray,optuna,stock)",
    )
    parser.add_argument(
        "--ours",
        nargs="+",
        action="append",
        default=[],
        metavar=("LABEL PATH", "OVERRIDE"),
        help="the checkout of this project at PATH, with overrides, as the contender LABEL; "
        "repeatable",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/search"), help="folder (default: outputs/search)"
    )
    options = parser.parse_args()
    command.run(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    """Measure, print the table and draw the picture.

    Raises:
        ConfigError: there is no such contender, or the results have another time limit.
        DataError: the data set cannot be loaded.
        Error: a contender failed.
    """
    names = options.contenders.split(",") if options.contenders else []
    if unknown := set(names) - set(CONTENDERS):
        raise ConfigError(f"--contenders: {', '.join(sorted(unknown))}: no such contender")
    contenders = {name: CONTENDERS[name] for name in names}
    for given in options.ours:
        if len(given) < 2:
            raise ConfigError("--ours: needs LABEL PATH")
        label, path, *overrides = given
        contenders[label] = ours(Path(path), overrides)
    root = str(source.locate(options.root).folder.parent.parent.resolve())
    results = measure(root, range(options.seeds), options.seconds, contenders, options.out)
    print("\n" + table(results))
    write_atomically(options.out / "search.png", picture(results))
    print(f"Saved to {options.out}")


if __name__ == "__main__":
    main()
