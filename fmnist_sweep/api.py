"""The package from Python and notebooks: train, sweep, load, compare.

    import fmnist_sweep as fs

    sweep = fs.sweep("search=mlp", name="first")   # or fs.load("multirun/first")
    sweep.trials, sweep.curves                     # DataFrames
    sweep.best.model()                             # a plain torch module with its weights
    sweep.plot.history()                           # a figure of matplotlib

`train` and `sweep` run the commands in a process of their own, so that nothing is left in this one.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fmnist_sweep.base.errors import Error, ReportError
from fmnist_sweep.base.figures import Figure, png
from fmnist_sweep.results import facts, lineage, record, tables
from fmnist_sweep.results.compare import plots, reading, showing
from fmnist_sweep.results.compare.findings import findings
from fmnist_sweep.results.publish import pictures
from fmnist_sweep.results.ranking import ranked

if TYPE_CHECKING:
    import optuna
    from torch import nn

__all__ = ["Comparison", "Error", "Run", "Sweep", "compare", "load", "sweep", "train"]

SHOWN_ROWS = 20  # of a sweep's table in a notebook


@dataclass(frozen=True)
class Run:
    """A run: a trial of a sweep, or a single training.

    folder: the run folder.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: state, seed and final figures."""
        return record.summary(self.folder) or {}

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per epoch or step; accuracies in [0, 1], losses in nats, times in s."""
        return pd.DataFrame(record.read_history(self.folder))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as nested dictionaries.

        Raises:
            RecordError: the folder has none.
        """
        return facts.configuration(self.folder)

    def model(self) -> "nn.Module":
        """Return the trained model in evaluation mode, on the CPU.

        Raises:
            Error: the run was not trained by this package, or left no model.
        """
        from fmnist_sweep.task import trained_model

        return trained_model.load(self.folder)

    def __repr__(self) -> str:
        shown = {k: self.summary[k] for k in ("state", "val_accuracy") if k in self.summary}
        figures = "".join(f", {key}={value}" for key, value in shown.items())
        return f"Run({str(self.folder)!r}{figures})"


class Sweep:
    """A sweep, as its run folders are when this object is made.

    Args:
        folder: the sweep's folder.

    Raises:
        ReportError: the folder does not exist, or holds no finished run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sweep = tables.Sweep(self.folder)
        if not self._sweep.update():
            raise ReportError(f"{self.folder}: holds no finished run; give a sweep's folder")

    @cached_property
    def _runs(self) -> list[tables.Run]:
        return [run for _, run in sorted(self._sweep.runs.items())]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, by its number: `sweep.csv`."""
        return self._sweep.sweep_table().set_index("trial")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per trial and epoch or step: `curves.csv`."""
        return self._sweep.curves_table()

    @property
    def best(self) -> Run | None:
        """The first trial of the ranking; None if no trial has a result."""
        first = ranked(self._runs)[0]
        return None if first.state == "FAILED" else Run(first.folder)

    def run(self, trial: int) -> Run:
        """Return a trial's run.

        Raises:
            KeyError: the sweep has no finished trial of this number.
        """
        return Run(self._sweep.runs[trial].folder)

    def config(self, trial: int) -> dict[str, Any]:
        """Return a trial's configuration; see `Run.config`."""
        return self.run(trial).config

    def model(self, trial: int) -> "nn.Module":
        """Return a trial's trained model; see `Run.model`."""
        return self.run(trial).model()

    @property
    def study(self) -> "optuna.Study":
        """The sweep's Optuna study.

        Raises:
            ConfigError: its database cannot be opened.
        """
        from fmnist_sweep.sweep.study import load_study

        return load_study(self.folder)

    @property
    def plot(self) -> "Plots":
        """The sweep's pictures."""
        return Plots(self._runs, lineage.read(self.folder))

    def __repr__(self) -> str:
        return f"Sweep({str(self.folder)!r}, {len(self._runs)} trials)"

    def _repr_html_(self) -> str:
        rows = [run.trial for run in ranked(self._runs)[:SHOWN_ROWS]]
        columns = [name for name in self.trials if self.trials[name].notna().any()]
        count = len(self._runs)
        more = f"<p>The best {SHOWN_ROWS} of {count} trials</p>" if count > SHOWN_ROWS else ""
        return str(self.trials.loc[rows, columns].to_html(float_format="{:.4g}".format)) + more


class Plots:
    """The pictures of a sweep, each a method that returns a figure of matplotlib.

    Args:
        runs: the sweep's runs.
        rows: its lineage.
    """

    def __init__(self, runs: Sequence[tables.Run], rows: Sequence[lineage.Descent]) -> None:
        self._runs = runs
        self._rows = rows

    def _figure(self, name: str) -> Figure:
        drawn = pictures(self._runs, self._rows)
        if name not in drawn:
            raise ReportError(
                f"plot.{name}: the sweep has no data for it; it has {', '.join(drawn)}"
            )
        figure = drawn[name]()
        # Notebooks show objects that have this method; a figure without pyplot has none.
        figure._repr_png_ = lambda: png(figure)  # type: ignore[attr-defined]
        return figure

    def curves(self) -> Figure:
        """Plot the curves of all trials."""
        return self._figure("curves")

    def history(self) -> Figure:
        """Plot each trial's objective and the best so far."""
        return self._figure("history")

    def importances(self) -> Figure:
        """Plot which keys mattered."""
        return self._figure("importances")

    def slices(self) -> Figure:
        """Plot the objective against each key."""
        return self._figure("slices")

    def parallel(self) -> Figure:
        """Plot trials as lines over their keys."""
        return self._figure("parallel")

    def grid(self) -> Figure:
        """Plot a grid of two keys."""
        return self._figure("grid")

    def pareto(self) -> Figure:
        """Plot two objectives and their front."""
        return self._figure("pareto")

    def schedule(self) -> Figure:
        """Plot when each trial was trained, and paused."""
        return self._figure("schedule")

    def lineage(self) -> Figure:
        """Plot the values of a population's trials."""
        return self._figure("lineage")

    def time(self) -> Figure:
        """Plot what the time was spent on."""
        return self._figure("time")

    def __dir__(self) -> list[str]:
        return list(pictures(self._runs, self._rows))


class Comparison:
    """A comparison of sweeps; each further sweep is compared with the first.

    findings: what `python -m fmnist_sweep.compare --format json` prints.

    Args:
        sweeps: at least two sweeps, their folders or their `sweep.csv`.
        objective: the column to compare; None for the objective of each sweep.

    Raises:
        CompareError: they cannot be compared.
    """

    def __init__(self, sweeps: Sequence["Sweep | str | Path"], objective: str | None) -> None:
        paths = [one.folder if isinstance(one, Sweep) else Path(one) for one in sweeps]
        self._tables = reading.read(paths, objective)
        self.findings = findings(self._tables)

    def figure(self) -> bytes:
        """Return the picture of the comparison, a PNG file."""
        return plots.picture(self._tables, self.findings["confidence"])

    def __str__(self) -> str:
        return showing.markdown(self.findings, None)

    def _repr_markdown_(self) -> str:
        return str(self)


def train(*overrides: str, quiet: bool = False) -> Run:
    """Train one trial: `python -m fmnist_sweep.train`.

    Args:
        overrides: such as "optimizer.lr=0.01".
        quiet: do not print what the command prints.

    Raises:
        Error: what the command says if it fails.
    """
    return Run(_folder_of(overrides, "Run folder: ", quiet))


def sweep(*overrides: str, name: str | None = None, quiet: bool = False) -> Sweep:
    """Run a sweep, or resume it: `python -m fmnist_sweep.train -m`.

    Args:
        overrides: such as "search=mlp" or "optimizer.lr=0.001,0.01".
        name: the sweep is written to multirun/NAME, and the same call resumes it.
        quiet: do not print what the command prints.

    Raises:
        Error: what the command says if it fails.
    """
    named = [f"name={name}"] if name else []
    return Sweep(_folder_of(["-m", *overrides, *named], "Sweep folder: ", quiet))


def load(folder: str | Path) -> Sweep:
    """Return the sweep in a folder.

    Raises:
        ReportError: it holds no finished run.
    """
    return Sweep(folder)


def compare(*sweeps: "Sweep | str | Path", objective: str | None = None) -> Comparison:
    """Compare sweeps with the first of them; see `Comparison`."""
    return Comparison(sweeps, objective)


def _folder_of(arguments: Sequence[str], announced: str, quiet: bool) -> Path:
    """Run the command and return the folder that it prints."""
    folder, last = None, ""
    for line in _lines(arguments):
        if not quiet:
            print(line, flush=True)
        if line.startswith(announced):
            # The names of files follow a sweep's folder.
            folder = line.removeprefix(announced).partition(" (")[0]
        last = line or last
    if folder is None:
        raise Error(last or "the command printed no folder")
    return Path(folder)


def _lines(arguments: Sequence[str]) -> Iterator[str]:
    """Run the command and yield its lines.

    Raises:
        Error: it has failed; the message is its last line.
    """
    last = ""
    with subprocess.Popen(
        [sys.executable, "-m", "fmnist_sweep.train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout
        try:
            for line in process.stdout:
                last = line.rstrip("\n") or last
                yield line.rstrip("\n")
        except BaseException:  # interrupted: the command keeps what it has
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            raise
    if process.returncode != 0:
        raise Error(last)
