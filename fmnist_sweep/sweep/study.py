"""The Optuna study of a sweep: open it, ask it for trials, tell it results.

Several processes may work on one study, on SQLite or a server, if they share the sweep's folder. A
trial belongs to a worker, the process whose id stands in the trial's `trial.json`. Each worker
holds a lock file. The operating system releases the lock when the process dies in any way.
"""

import bisect
import itertools
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from fmnist_sweep.base.errors import ConfigError, StopSweep
from fmnist_sweep.base.files import make_unique_dir, sqlite_url
from fmnist_sweep.base.locks import LifeLock
from fmnist_sweep.results import record
from fmnist_sweep.results.facts import pick
from fmnist_sweep.sweep import agreement, database, trial_rows
from fmnist_sweep.sweep.constraints import MAX_DRAWS, draw, random_study
from fmnist_sweep.sweep.database import Address, load, retry, storage
from fmnist_sweep.sweep.ranks import last_values, with_ranks
from fmnist_sweep.sweep.scheduler import PAUSED, RESUMED, EpochLimit, StudyState, is_paused
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.space import Space

# Suggestions of the sampler of which one should be allowed. It may suggest much the same each time.
MAX_SUGGESTIONS = 20


def _url(folder: Path, settings: Settings) -> str:
    return settings.storage or sqlite_url(folder / "study.db")


def load_study(folder: Path) -> optuna.Study:
    """Return the study of a sweep that has run.

    Raises:
        ConfigError: the folder names no study, or its database cannot be opened.
    """
    try:
        name = record.read_json(folder, "study.json")["name"]
        started = record.read_yaml(folder / "multirun.yaml")
        url = pick(started, "hydra.sweeper.storage") or sqlite_url(folder.absolute() / "study.db")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder}: names no study, so no sweep has run here") from None
    try:
        return optuna.load_study(study_name=name, storage=database.connect(url))
    except KeyError:
        raise ConfigError(f"{folder}: its database has no study {name} any longer") from None
    except database.faults() as error:
        raise database.refusal(url, error) from None


def _identity(folder: Path, name: str) -> dict[str, Any]:
    """Return the contents of `study.json`, which names the folder's study; write it if missing.

    A server holds the studies of many folders. The id tells this folder's study from another of the
    same name.
    """
    try:
        identity = record.read_json(folder, "study.json")
        if not all(isinstance(identity.get(key), str) for key in ("name", "id")):
            raise ConfigError(f"{folder / 'study.json'}: torn or edited: it names no study")
        return identity
    except FileNotFoundError:
        identity = {"name": name, "id": uuid.uuid4().hex}
        record.write_json(folder, "study.json", identity)
        return identity


def _point_key(values: Mapping[str, Any]) -> str:
    """Return a point as a dictionary key that does not depend on the order of parameters."""
    return json.dumps(values, sort_keys=True)


def lock(folder: Path) -> FileLock:
    """Return the lock that a process must hold to change a sweep's study or folder."""
    return FileLock(folder / ".study.lock")


def tell(
    address: Address,
    number: int,
    run: Path,
    objectives: Sequence[str],
    steps: Mapping[int, Sequence[float]] | None = None,
) -> None:
    """Tell the study how a trial ended, or that it is paused, from its run folder.

    Do nothing if the study has the trial's result already, or if another attempt has replaced this
    one.

    Args:
        number: the trial's number.
        run: the run folder of this attempt.
        objectives: names of the metrics to tell as values, in the study's order.
        steps: the objectives' values by step, as far as the study has not heard of them.
    """
    summary = record.summary(run)
    assert summary is not None

    def tell_once() -> None:
        backend = storage(address.url)
        trial = trial_rows.read_status(address, number)
        if trial.state.is_finished() or trial.run != run.name:
            return
        if summary["reason"]:
            backend.set_trial_user_attr(trial.id, "reason", summary["reason"])
        if trial.state == TrialState.WAITING:
            backend.set_trial_state_values(trial.id, TrialState.RUNNING)
        if summary["state"] == "COMPLETE":
            figures = {**(summary.get("metrics") or {}), **summary}
            values = [float(figures[name]) for name in objectives]
            trial_rows.complete(address.url, trial, values, steps or {})
            return
        trial_rows.set_steps(address.url, trial, steps or {})
        if summary["state"] == "PAUSED":
            backend.set_trial_user_attr(trial.id, PAUSED, summary["epochs"])
        elif summary["state"] == "PRUNED":  # its value is that of its last step
            load(address).tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            backend.set_trial_state_values(trial.id, TrialState.FAIL)

    retry(tell_once)


def _as_the_sampler_sees_it(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial, as pruned if it is paused: samplers learn nothing from running trials.

    Of several objectives they learn from complete trials only. One that has stopped early is then
    shown as complete, with the values that it had reached.
    """
    stopped = is_paused(trial) or trial.state == TrialState.PRUNED
    values = last_values(trial) if stopped else None
    if values:
        return optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, values=values
        )
    if not is_paused(trial):
        return trial
    return optuna.trial.create_trial(
        state=TrialState.PRUNED,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
    )


class TakenTrial(NamedTuple):
    """A trial that a process has taken to run it.

    number: the trial's number.
    params: its parameters by key.
    run: its run folder.
    again: how many earlier trials have the same parameters.
    """

    number: int
    params: Mapping[str, Any]
    run: Path
    again: int = 0


class SweepStudy:
    """The study of a sweep's folder, as one worker uses it.

    Args:
        folder: the sweep's folder.
        name: the name of a new study.
        seed: the sampler's seed.
        free_keys: keys that may change between starts.
        known: trials of earlier sweeps from which the sampler learns.
        allows: returns whether a suggestion may become a trial.
        epochs_key: the key of the number of epochs, if there is one.

    Raises:
        ConfigError: the database cannot be opened, or its study has another definition.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        settings: Settings,
        seed: int,
        free_keys: Sequence[str] = (),
        known: Sequence[FrozenTrial] = (),
        allows: Callable[[Mapping[str, Any]], bool] = lambda _: True,
        epochs_key: str | None = None,
    ) -> None:
        self.folder = folder
        self.space = space
        self.objectives = settings.objective
        self.seed_key = settings.seed_key
        self.scheduler = settings.scheduler
        self.allows = allows
        self.limit = EpochLimit(epochs_key, space.base.get(epochs_key) if epochs_key else None)
        self.free_keys = free_keys
        self.worker = uuid.uuid4().hex[:12]
        self.lock = lock(folder)
        with self.lock:
            url = _url(folder, settings)
            self._life_lock = LifeLock(self._worker_lock(self.worker))
            try:
                self.study = self._open(name, settings, seed)
                self.directions = [d.name.lower() for d in self.study.directions]
                self._untried = {_point_key(point): point for point in space.initial_points}
                self._numbers: dict[str, list[int]] = {}  # of the trials by point
                self._n_seen = 0
                self._known = known
                # For suggestions that need not come from the sweep's own study.
                self._beside = self._make_beside()
                self._shown_beside: dict[int, tuple[TrialState, int | None]] = {}  # by number
                # Those of an earlier start with a scheduler, if this one has none.
                self._may_have_paused = bool(settings.scheduler) or any(
                    map(is_paused, self.study.get_trials(deepcopy=False))
                )
                # Optuna's samplers learn nothing from running trials, such as paused ones.
                self._asks_beside = settings.suggests_independently or (
                    settings.learns_from_any_study
                    and bool(
                        known
                        or settings.scheduler
                        or settings.constraints
                        or settings.prunes_several
                    )
                )
                if space.is_grid:
                    # After a change of the grid, trials of the old grid do not count.
                    trials = self.study.get_trials(deepcopy=False)
                    n_points = len(self._untried)
                    self._see(trials)
                    tried = n_points - len(self._untried)
                    self.space = replace(space, n_trials=space.n_trials + len(trials) - tried)
            except BaseException as error:
                self.close()
                if isinstance(error, database.faults()):  # for example, the disk is full
                    raise database.refusal(url, error) from None
                raise
        self.address = Address(url, self.study.study_name)

    def _open(self, name: str, settings: Settings, seed: int) -> optuna.Study:
        """Create the study, or load it and check that it is this sweep's."""
        backend = database.connect(_url(self.folder, settings))
        identity = _identity(self.folder, name)
        name = identity["name"]
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
        if study.user_attrs.setdefault("folder", identity["id"]) != identity["id"]:
            raise ConfigError(
                f"hydra.sweeper.storage: its study {name} belongs to another folder; "
                "name=another begins a new one"
            )
        agreement.check_unchanged(study, self.space, settings, self.free_keys)
        starts = study.user_attrs.get("starts", 0)
        study.sampler = make_sampler(settings, seed, starts)
        self._random = random_study(seed + starts)
        study.set_user_attr("starts", starts + 1)
        # Last, as this binds the study to the folder.
        study.set_user_attr("folder", identity["id"])
        return study

    def close(self) -> None:
        """Release this worker's lock and close the database."""
        self._life_lock.close()
        database.disconnect()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number; the caller must not change them."""
        return retry(lambda: self.study.get_trials(deepcopy=False))

    def take(
        self, count: int, extend: Callable[[optuna.Trial], None] | None = None
    ) -> list[TakenTrial]:
        """Take the next trials and make their run folders.

        Waiting trials come first, including those of an interrupted sweep, and paused trials that
        the scheduler resumes. Then come the space's initial points, the sampler's suggestions, and
        last the trials of processes that have died. Once there is nothing left to train, trials
        that are still paused are pruned.

        Args:
            count: the maximum number of trials.
            extend: suggests further, conditional parameters.

        Returns:
            The trials; fewer than `count` if the sweep has begun all others.
        """
        taken: list[TakenTrial] = []
        with self.lock:
            total, waiting = retry(partial(trial_rows.count, self.address))
            if total > self._n_seen and (self._untried or not self.space.is_grid):
                self._see(self.trials())
            while len(taken) < count:
                if not waiting and total >= self.space.n_trials:
                    # Those of processes that have died, or that were interrupted in this function.
                    waiting = self.reclaim_abandoned()
                if waiting:
                    taken.append(retry(partial(self._take_asked, extend)))
                    waiting -= 1
                    continue
                if resumed := self._resume_paused(is_last=total >= self.space.n_trials):
                    taken.append(resumed)
                    continue
                if total >= self.space.n_trials:
                    break
                most = min(count - len(taken), self.space.n_trials - total)
                begun = self._begin_points([] if extend else self._known_points(most), total)
                if not begun:
                    retry(self._enqueue_point)
                    begun = [retry(partial(self._take_asked, extend))]
                taken += begun
                total += len(begun)
        return taken

    def _known_points(self, count: int) -> list[dict[str, Any]]:
        """Return up to a number of next points that do not depend on the results of trials."""
        space = self.space
        points = list(itertools.islice(self._untried.values(), count))
        if points:
            keys = space.distributions.keys()
            return list(itertools.takewhile(lambda point: point.keys() == keys, points))
        if not self._asks_beside:
            return []
        if type(self.study.sampler) is not optuna.samplers.RandomSampler:
            self._show_results_beside()
        return [self._suggest() for _ in range(count)]

    def _suggest(self) -> dict[str, Any]:
        """Return the sampler's suggestion; a random point if the constraints refuse many of them.

        Raises:
            StopSweep: they refuse random points too.
        """
        for attempt in range(MAX_DRAWS):
            study = self._beside if attempt < MAX_SUGGESTIONS else self._random
            point = draw(study, self.space)  # its result comes with the trial's
            if self.allows(point):
                return point
        raise StopSweep(f"hydra.sweeper.constraints: allow none of {MAX_DRAWS:,} suggestions")

    def _make_beside(self) -> optuna.Study:
        """Return a study in memory that has the results of earlier sweeps."""
        made = optuna.create_study(sampler=self.study.sampler, directions=self.study.directions)
        made.add_trials(self._known)
        return made

    def _show_results_beside(self) -> None:
        """Add the results of new and of paused trials to the study in memory.

        A trial of a study cannot change once it has ended. After a pause it can: make a new study.
        """
        results = [
            trial for trial in self.trials() if trial.state.is_finished() or is_paused(trial)
        ]
        states = {trial.number: (trial.state, trial.user_attrs.get(PAUSED)) for trial in results}
        if not self._shown_beside.items() <= states.items():
            self._beside, self._shown_beside = self._make_beside(), {}
        new = [trial for trial in results if trial.number not in self._shown_beside]
        self._beside.add_trials(map(_as_the_sampler_sees_it, new))
        self._shown_beside = states

    def _resume_paused(self, is_last: bool) -> TakenTrial | None:
        """Take the paused trial that the scheduler resumes; prune the others once it is over.

        Args:
            is_last: whether no further trial begins.
        """
        if not self._may_have_paused:
            return None
        trials = self.trials()
        paused = list(filter(is_paused, trials))
        for trial in paused:
            if self.scheduler is None or self._run(trial) is None:  # deleted by hand
                return self._resume(trial)
        if self.scheduler is None:
            return None
        ranked, direction = with_ranks(trials, self.study.directions)
        chosen = self.scheduler.next_to_resume(
            StudyState(ranked, direction, self.limit, can_begin=not is_last)
        )
        if chosen is not None:
            return self._resume(trials[chosen])
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if is_last and running == len(paused):
            for trial in paused:
                self._prune_paused(trial)
        return None

    def _resume(self, trial: FrozenTrial) -> TakenTrial:
        resumed = [*trial.user_attrs.get(RESUMED, []), trial.user_attrs[PAUSED]]
        attributes: dict[str, Any] = {PAUSED: None, RESUMED: resumed}
        run = self._run(trial)
        if run is None or not record.checkpoints(run):  # from the beginning
            run = self._make_run(trial.number, trial.params)
            attributes["run"] = run.name
        else:
            # In this order a process that dies in between leaves the trial paused.
            record.write_json(run, "trial.json", self._note_of_resumed(run))
        retry(partial(trial_rows.set_attributes, self.address.url, {trial._trial_id: attributes}))
        (run / "summary.json").unlink(missing_ok=True)
        again = self._earlier(trial.number, trial.params)
        return TakenTrial(trial.number, trial.params, run, again)

    def _note_of_resumed(self, run: Path) -> dict[str, Any]:
        """Return the content of the `trial.json` of a trial that this worker resumes."""
        note, paused = record.read_json(run, "trial.json"), record.summary(run)
        pauses = list(note.get("pauses", []))
        if paused is not None:
            pauses.append({name: paused[name] for name in ("epochs", "started", "ended")})
        return {**note, "worker": self.worker, "pauses": pauses}

    def _prune_paused(self, trial: FrozenTrial) -> None:
        run = self._run(trial)
        assert run is not None
        paused = record.summary(run) or {"reason": f"paused after epoch {trial.user_attrs[PAUSED]}"}
        record.finish(run, "PRUNED", paused["reason"].replace("paused", "pruned", 1))
        tell(self.address, trial.number, run, self.objectives)
        for path in record.checkpoints(run).values():
            path.unlink(missing_ok=True)

    def _enqueue_point(self) -> None:
        """Let the next trial of the study have the next initial point and the fixed values."""
        point = next(iter(self._untried.values()), None)
        if point is not None or self.space.fixed_values:
            self.study.enqueue_trial(point or {}, user_attrs=self.space.fixed_values)
            self._untried.pop(_point_key(point or {}), None)

    def _take_asked(self, extend: Callable[[optuna.Trial], None] | None) -> TakenTrial:
        """Take a waiting trial or one of the sampler's."""
        trial = self.study.ask(self.space.distributions)
        if extend:
            extend(trial)
        run = self._make_run(trial.number, trial.params)
        trial.set_user_attr("run", run.name)
        if trial.number == self._n_seen:
            self._n_seen += 1
        return TakenTrial(
            trial.number, trial.params, run, self._earlier(trial.number, trial.params)
        )

    def _begin_points(self, points: Sequence[dict[str, Any]], total: int) -> list[TakenTrial]:
        """Begin trials whose parameters are known.

        Args:
            total: the number of trials in the study.
        """
        if not points:
            return []
        url = self.address.url
        runs = [self._make_run(total + i, point) for i, point in enumerate(points)]
        # Until a trial has a run folder it belongs to no worker; others may then release it.
        begin = partial(trial_rows.begin, self.address, points, self.space.distributions)
        ids = retry(begin)
        numbers = list(ids)
        for i, (number, point) in enumerate(zip(numbers, points)):
            if number != total + i:  # another program has added a trial
                runs[i] = self._make_run(number, point)
            self._untried.pop(_point_key(point), None)
        if numbers[-1] + 1 == total + len(points) and self._n_seen == total:
            self._n_seen += len(points)  # no other has added trials
        fixed = self.space.fixed_values
        attributes = {id: {**fixed, "run": run.name} for id, run in zip(ids.values(), runs)}
        retry(partial(trial_rows.set_attributes, url, attributes))
        return [
            TakenTrial(number, point, run, self._earlier(number, point))
            for number, point, run in zip(numbers, points, runs)
        ]

    def _make_run(self, number: int, params: Mapping[str, Any]) -> Path:
        """Make a trial's run folder with its `trial.json`."""
        run = make_unique_dir(self.folder / str(number))
        record.write_json(run, "trial.json", self._note(number, params))
        return run

    def _note(self, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a run's `trial.json`."""
        return {
            "trial": number,
            "params": params,
            "default": self.space.is_default(params),
            "objective": self.objectives,
            "direction": self.directions,
            "seed_key": self.seed_key,
            "worker": self.worker,
        }

    def _see(self, trials: Sequence[FrozenTrial]) -> None:
        """Note the points of new trials, and keep those initial points that none has been given."""
        for trial in trials[self._n_seen :]:
            given = trial.system_attrs.get("fixed_params", trial.params)
            self._untried.pop(_point_key(given), None)
            if trial.params:
                self._earlier(trial.number, trial.params)
        self._n_seen = len(trials)

    def _earlier(self, number: int, params: Mapping[str, Any]) -> int:
        """Return how many trials with a lower number have the same parameters."""
        numbers = self._numbers.setdefault(_point_key(params), [])
        if number not in numbers:
            bisect.insort(numbers, number)
        return numbers.index(number)

    def requeue(self, numbers: Sequence[int]) -> None:
        """Return running trials to the queue; any worker may run them again."""
        with self.lock:
            for trial in self.trials():
                if trial.number in numbers and trial.state == TrialState.RUNNING:
                    self._requeue(trial)

    def release_own(self) -> None:
        """Release this worker's running trials, and those that no worker has claimed."""
        self._release(lambda worker: worker in (None, self.worker))

    def reclaim_abandoned(self) -> int:
        """Release the running trials of dead or unknown processes.

        Returns:
            The number of trials that will be run again.
        """
        return self._release(lambda worker: not self._is_alive(worker))

    def _release(self, is_ours: Callable[[str | None], bool]) -> int:
        """End interrupted trials: tell those whose run has finished, requeue the others.

        Args:
            is_ours: whether to end the trials of a worker, given by id or None.

        Returns:
            The number of trials that will be run again.
        """
        n_requeued = 0
        with self.lock:
            for trial in self.trials():
                if trial.state != TrialState.RUNNING or is_paused(trial):
                    continue
                if not is_ours(self._worker(trial)):
                    continue
                run = self._run(trial)
                if run and record.summary(run) is not None:
                    tell(self.address, trial.number, run, self.objectives)
                else:
                    self._requeue(trial)
                    n_requeued += 1
        return n_requeued

    def _requeue(self, trial: FrozenTrial) -> None:
        backend = storage(self.address.url)
        retry(lambda: backend.set_trial_state_values(trial._trial_id, TrialState.WAITING))

    def _worker(self, trial: FrozenTrial) -> str | None:
        """Return the id of a trial's worker; None if the process stopped before it wrote its id.

        Call this with the lock held, as a process holds the lock while it writes its id.
        """
        run = self._run(trial)
        worker = str(record.read_json(run, "trial.json").get("worker")) if run else ""
        return worker if re.fullmatch("[0-9a-f]{12}", worker) else None

    def _run(self, trial: FrozenTrial) -> Path | None:
        """Return a trial's run folder; None if it has none.

        The name comes from the database, which is not trusted to name a folder of the sweep.
        """
        name = str(trial.user_attrs.get("run"))
        run = self.folder / name
        is_run = re.fullmatch(r"\d+(-\d+)?", name) and (run / "trial.json").exists()
        return run if is_run else None

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None or worker == self.worker:
            return worker is not None
        return LifeLock.is_held(self._worker_lock(worker))

    def processes(self) -> int:
        """Return the number of processes that work on the sweep now, including this one."""
        with self.lock:
            names = [path.name for path in self.folder.glob(".worker-*.lock")]
            workers = [name.removeprefix(".worker-").removesuffix(".lock") for name in names]
            return sum(self._is_alive(worker) for worker in workers)

    def _worker_lock(self, worker: str) -> Path:
        return self.folder / f".worker-{worker}.lock"
