"""Optuna's record of a sweep: agreed with, asked and told.

Several processes may work on one study, on SQLite or a server, as long as they share the sweep's
folder. A trial belongs to the process that holds the worker's lock named in its `trial.json`; the
operating system lets go of the lock when that process dies, however it dies.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import make_unique_dir, sqlite_url
from fmnist_sweep.base.locks import LifeLock
from fmnist_sweep.results import record
from fmnist_sweep.sweep import agreement, database
from fmnist_sweep.sweep.database import Address, load, read_trial, retry, storage
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.space import Space


def _url(folder: Path, settings: Settings) -> str:
    return settings.storage or sqlite_url(folder / "study.db")


def _noted(folder: Path, name: str) -> dict[str, Any]:
    """`study.json`: which study is this folder's; its first start writes it.

    A server holds the studies of many folders; the id tells ours from another of that name.
    """
    try:
        noted = record.read_json(folder, "study.json")
        if not all(isinstance(noted.get(key), str) for key in ("name", "id")):
            raise ConfigError(f"{folder / 'study.json'}: torn or edited: it names no study")
        return noted
    except FileNotFoundError:
        noted = {"name": name, "id": uuid.uuid4().hex}
        record.write_json(folder, "study.json", noted)
        return noted


def _as_text(values: Mapping[str, Any]) -> str:
    """A point by which it can be found, whatever the order of its keys."""
    return json.dumps(values, sort_keys=True)


def lock(folder: Path) -> FileLock:
    """Held by whoever changes a sweep's study or folder."""
    return FileLock(folder / ".study.lock")


def tell(address: Address, number: int, run: Path, objectives: Sequence[str]) -> None:
    """Tells the study how a trial ended, from its finished run folder.

    Does nothing for a trial that is told already or that another attempt has taken over.
    """
    summary = record.summary(run)
    assert summary is not None

    def once() -> None:
        study, backend = load(address), storage(address.url)
        trial = read_trial(address, number)
        if trial.state.is_finished() or trial.user_attrs.get("run") != run.name:
            return
        if summary["reason"]:
            backend.set_trial_user_attr(trial._trial_id, "reason", summary["reason"])
        if trial.state == TrialState.WAITING:
            backend.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        if summary["state"] == "COMPLETE":
            figures = {**(summary.get("metrics") or {}), **summary}
            values = [figures[name] for name in objectives]
            study.tell(number, values, skip_if_finished=True)
        else:
            failed = summary["state"] == "FAILED"
            state = TrialState.FAIL if failed else TrialState.PRUNED
            study.tell(number, state=state, skip_if_finished=True)

    retry(once)


class SweepStudy:
    """The study of one sweep folder, as the process sees it that drives the sweep.

    Raises:
        ConfigError: the database cannot be opened, or its study is not the one to be continued.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        settings: Settings,
        seed: int,
        free_keys: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.space = space
        self.objectives = settings.objective
        self.seed_key = settings.seed_key
        self.free_keys = free_keys
        self.worker = uuid.uuid4().hex[:12]
        self.lock = lock(folder)
        with self.lock:
            url = _url(folder, settings)
            self._alive = LifeLock(self._worker_lock(self.worker))
            try:
                self.study = self._open(name, settings, seed)
                self._untried = {_as_text(point): point for point in space.points}
                self._looked_at = 0
                if space.is_grid:
                    # Trials of what the grid was before a change, if any, are none of its own.
                    trials = self.study.get_trials(deepcopy=False)
                    own = len(self._untried) - len(self._untried_after(trials))
                    self.space = replace(space, n_trials=space.n_trials + len(trials) - own)
            except BaseException as error:
                self.close()
                if isinstance(error, database.faults()):  # as when the disk fills up just now
                    raise database.refusal(url, error) from None
                raise
        self.address = Address(url, self.study.study_name)

    def _open(self, name: str, settings: Settings, seed: int) -> optuna.Study:
        """Creates the study, or makes sure that it is the one to be continued."""
        backend = database.reachable(_url(self.folder, settings))
        noted = _noted(self.folder, name)
        name = noted["name"]
        if name in optuna.get_all_study_names(backend):
            study = optuna.load_study(study_name=name, storage=backend)
        elif record.attempts(self.folder):
            raise ConfigError(
                f"{self.folder}: holds trials of the study {name}, which its database has no "
                "longer; put it back, or name=another begins a new sweep"
            )
        else:
            study = optuna.create_study(
                study_name=name, storage=backend, directions=settings.direction
            )
        if study.user_attrs.setdefault("folder", noted["id"]) != noted["id"]:
            raise ConfigError(
                f"hydra.sweeper.storage: its study {name} belongs to another folder; "
                "name=another begins a new one"
            )
        agreement.agree(study, self.space, settings, self.free_keys)
        starts = study.user_attrs.get("starts", 0)
        study.sampler = make_sampler(settings, seed, starts)
        study.set_user_attr("starts", starts + 1)
        # Last, since from now on the study is this folder's alone.
        study.set_user_attr("folder", noted["id"])
        return study

    def close(self) -> None:
        """Says that this process works on the sweep no longer."""
        self._alive.close()
        database.disconnect()

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; not to be changed."""
        return retry(lambda: self.study.get_trials(deepcopy=False))

    def ask(
        self, extend: Callable[[optuna.Trial], None] | None
    ) -> tuple[optuna.Trial, Path] | None:
        """Takes the next trial and makes its run folder.

        Waiting trials come first, those of an interrupted sweep among them, then the space's
        points, then what the sampler suggests, and in the end the trials of processes that have
        died meanwhile.

        Args:
            extend: suggests further, conditional parameters.

        Returns:
            None if as many trials have been begun as the sweep is to have.
        """
        with self.lock:
            return retry(lambda: self._ask(extend))

    def _ask(
        self, extend: Callable[[optuna.Trial], None] | None
    ) -> tuple[optuna.Trial, Path] | None:
        space, trials = self.space, self.trials()
        for known in trials:
            # Asked for by a process that stopped, or lost the database, before it could say so.
            if known.state == TrialState.RUNNING and "run" not in known.user_attrs:
                self._put_back(known)
                return self._ask(extend)
        if not any(trial.state == TrialState.WAITING for trial in trials):
            if len(trials) >= space.n_trials:
                return self._ask(extend) if self.take_over() else None
            untried = self._untried_after(trials)
            point = next(iter(untried.values()), {})
            self.study.enqueue_trial(point, user_attrs=space.fixed)
        trial = self.study.ask(space.distributions)
        if extend:
            extend(trial)
        run = make_unique_dir(self.folder / str(trial.number))
        note = {
            "trial": trial.number,
            "params": trial.params,
            "default": space.is_default(trial.params),
            "objective": self.objectives,
            "direction": [direction.name.lower() for direction in self.study.directions],
            "seed_key": self.seed_key,
            "worker": self.worker,
        }
        record.write_json(run, "trial.json", note)
        trial.set_user_attr("run", run.name)
        return trial, run

    def _untried_after(self, trials: Sequence[FrozenTrial]) -> dict[str, dict[str, Any]]:
        """The space's points, in their order, that none of the trials has been given."""
        for trial in trials[self._looked_at :]:
            given = trial.system_attrs.get("fixed_params", trial.params)
            self._untried.pop(_as_text(given), None)
        self._looked_at = len(trials)
        return self._untried

    def put_back(self, numbers: Sequence[int]) -> None:
        """Has trials that were begun in vain run again, by whoever asks next."""
        with self.lock:
            for trial in self.trials():
                if trial.number in numbers and trial.state == TrialState.RUNNING:
                    self._put_back(trial)

    def settle_mine(self) -> None:
        """Leaves none of this process's trials RUNNING."""
        self._settle(lambda worker: worker in (None, self.worker))

    def take_over(self) -> int:
        """Settles the trials of processes that are gone.

        Returns:
            How many are to be run again.
        """
        return self._settle(lambda worker: not self._is_alive(worker))

    def _settle(self, ours: Callable[[str | None], bool]) -> int:
        """Ends interrupted trials: told if the run had finished, else put back into the queue."""
        again = 0
        with self.lock:
            for trial in self.trials():
                if trial.state != TrialState.RUNNING or not ours(self._worker(trial)):
                    continue
                run = self._run(trial)
                if run and record.summary(run) is not None:
                    tell(self.address, trial.number, run, self.objectives)
                else:
                    self._put_back(trial)
                    again += 1
        return again

    def _put_back(self, trial: FrozenTrial) -> None:
        backend = storage(self.address.url)
        retry(lambda: backend.set_trial_state_values(trial._trial_id, TrialState.WAITING))

    def _worker(self, trial: FrozenTrial) -> str | None:
        """The process that has a trial; None if it stopped before it could say so.

        To be asked with the lock held: a process that is about to say so holds it.
        """
        run = self._run(trial)
        worker = str(record.read_json(run, "trial.json").get("worker")) if run else ""
        return worker if re.fullmatch("[0-9a-f]{12}", worker) else None

    def _run(self, trial: FrozenTrial) -> Path | None:
        """A trial's run folder; never one outside of the sweep's, whatever the database says."""
        name = str(trial.user_attrs.get("run"))
        run = self.folder / name
        is_ours = re.fullmatch(r"\d+(-\d+)?", name) and (run / "trial.json").exists()
        return run if is_ours else None

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None or worker == self.worker:
            return worker is not None
        return LifeLock.is_held(self._worker_lock(worker))

    def processes(self) -> int:
        """How many processes are at work on the sweep now, this one included."""
        with self.lock:
            names = [path.name for path in self.folder.glob(".worker-*.lock")]
            workers = [name.removeprefix(".worker-").removesuffix(".lock") for name in names]
            return sum(self._is_alive(worker) for worker in workers)

    def _worker_lock(self, worker: str) -> Path:
        return self.folder / f".worker-{worker}.lock"
