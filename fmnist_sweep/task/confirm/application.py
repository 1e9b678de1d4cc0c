"""Run the candidates of another Hydra application again, by its own command."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import ConfigError, RecordError
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.sweep.overrides import override_text
from fmnist_sweep.task.confirm.candidates import Candidate


def is_of_application(run: Run) -> bool:
    """Return whether a run is another application's, by the section that only its summary has."""
    return "metrics" in run.summary


@dataclass(frozen=True)
class Application:
    """The command of a Hydra application, such as `python app.py`.

    The command is the user's, never one that a sweep's folder names: the folder may be somebody
    else's.
    """

    command: str

    def run(
        self, folder: Path, candidate: Candidate, seeds: Sequence[int], measure: Measure
    ) -> Mapping[int, float | None]:
        """Run a candidate on each seed, as a sweep in a folder of its own.

        A sweep that has been completed there is only read.

        Args:
            folder: the folder of that sweep.

        Returns:
            The metric by seed; None where the run failed.

        Raises:
            ConfigError: the command starts no sweep.
        """
        seed_key = candidate.seed_key
        # A list of one value would be no sweep; equal values are one trial.
        values = ",".join(map(str, seeds if len(seeds) > 1 else [*seeds, *seeds]))
        arguments = [
            *shlex.split(self.command),
            "-m",
            "hydra/sweeper=study",
            "hydra/sweeper/pruner=none",
            *candidate.overrides,
            f"{seed_key}={values}",
            f"hydra.sweep.dir={override_text(str(folder.absolute()))}",
            f"hydra.sweeper.objective={override_text(measure.name)}",
            f"hydra.sweeper.direction={measure.direction}",
            f"hydra.sweeper.seed_key={seed_key}",
            "hydra.sweeper.max_failures=null",
            *(f"hydra.sweeper.{key}=null" for key in ("params", "repeats", "n_trials", "storage")),
        ]
        found = _runs_by_seed(folder, seed_key)
        if set(found) != set(seeds):
            done = self._call(arguments)
            found = _runs_by_seed(folder, seed_key)
            if set(found) != set(seeds):
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise ConfigError(f"--app={self.command!r}: {candidate.name}: {lines[-1]}")
        return {seed: _value(found[seed], measure) for seed in seeds}

    def _call(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                arguments, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise ConfigError(f"--app={self.command!r}: {error.strerror}") from None


def _runs_by_seed(folder: Path, seed_key: str) -> dict[Any, Run]:
    """Return the finished runs of a candidate's sweep."""
    if not folder.is_dir():
        return {}
    sweep = Sweep(folder)
    sweep.update()
    return {run.params.get(seed_key): run for run in sweep.runs.values()}


def _value(run: Run, measure: Measure) -> float | None:
    value = run.figure(measure.name) if run.state == "COMPLETE" else None
    if not isinstance(value, int | float | None):
        raise RecordError(f"{run.folder}/summary.json: {measure.name}={value}: no number")
    return value
