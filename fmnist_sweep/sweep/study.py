"""Optuna's record of a sweep: opened, agreed with, asked and told.

Several processes may work on one study, on SQLite or a server, as long as they share the sweep's
folder. A trial belongs to the process that holds the worker's lock named in its `trial.json`; the
operating system lets go of the lock when that process dies, however it dies.
"""

import fcntl
import functools
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from fmnist_sweep import record
from fmnist_sweep.config import ConfigError
from fmnist_sweep.sweep import agreement
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.space import Space

T = TypeVar("T")
PATIENCE = 180.0  # seconds that a locked or restarting database is waited for
SQLITE_WAIT = 20.0  # of them, seconds that SQLite itself waits for a lock each time


class Lost(KeyboardInterrupt):
    """The study's database is gone; what has finished is in the run folders.

    No error of the trial's, and so none of `Exception`: it ends the sweep as an interruption does.
    """


@dataclass(frozen=True)
class Address:
    """Where a study is. A worker process opens it anew."""

    url: str
    name: str


_opened: dict[str, BaseStorage] = {}


def storage(url: str) -> BaseStorage:
    """Opens a database once in a process, creating its tables where there are none.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, ImportError, ConnectionError: no such server, driver or
            file.
    """
    if url not in _opened:
        _opened[url] = _proxy(url) if url.startswith("grpc://") else _database(url)
    return _opened[url]


def _proxy(url: str) -> BaseStorage:
    """Optuna's gRPC proxy, which stands before a database."""
    address = urlsplit(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        opened = GrpcStorageProxy(host=address.hostname or "localhost", port=address.port or 13000)
    opened.wait_server_ready(5)
    return opened


def _database(url: str) -> BaseStorage:
    is_file = url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": SQLITE_WAIT}} if is_file else {"pool_pre_ping": True}
    opened = RDBStorage(url, engine_kwargs=arguments)
    if is_file:
        # By default SQLite takes its lock at the first write: of two processes that have read the
        # same waiting trial both would get it.
        engine = opened.engine
        sqlalchemy.event.listen(engine, "connect", _leave_transactions_to_us)
        sqlalchemy.event.listen(engine, "begin", _begin_immediate)
        engine.dispose()
    return opened


def hang_up() -> None:
    """Closes connections to databases, which open again when they are needed.

    To be called before a fork, which must not share them.
    """
    for opened in _opened.values():
        opened.remove_session()
        if isinstance(opened, RDBStorage):
            opened.engine.dispose()


def forget() -> None:
    """Has a fork open for itself what it needs."""
    _lost.clear()
    load.cache_clear()
    _opened.clear()


def disconnect() -> None:
    """Closes what this process has opened."""
    hang_up()
    for opened in _opened.values():
        if isinstance(opened, GrpcStorageProxy):
            opened.close()
    forget()


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _faults() -> tuple[type[Exception], ...]:
    """What a database raises that is locked, restarts or is gone."""
    grpc = sys.modules.get("grpc")
    proxied = (grpc.RpcError,) if grpc else ()
    return (StorageInternalError, sqlalchemy.exc.DBAPIError, *proxied)


def _reason(error: Exception) -> str:
    said = error.details() if hasattr(error, "details") else error.__cause__ or error
    return (str(said).strip().splitlines() or [type(error).__name__])[0]


def reachable(url: str) -> BaseStorage:
    """Opens a database.

    Raises:
        ConfigError: its server, driver, file or scheme is not there.
    """
    try:
        try:
            return storage(url)
        except _faults():
            time.sleep(1)  # two processes that create the tables at once
            return storage(url)
    except Exception as error:
        mistakes = (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, ConnectionError)
        if not isinstance(error, (*mistakes, *_faults())):
            raise
        raise ConfigError(
            f"hydra.sweeper.storage={_shown(url)}: {_reason(error)}; it takes an SQLAlchemy URL "
            "such as sqlite:////folder/study.db or postgresql+psycopg://user@host/database, or "
            "grpc://host:port of Optuna's proxy"
        ) from None


def check_written(url: str | None) -> None:
    """Refuses a password in a storage as it is written, which every run folder would repeat.

    Raises:
        ConfigError: there is one.
    """
    try:
        secret = sqlalchemy.make_url(url or "").password
    except sqlalchemy.exc.ArgumentError:  # none, or an interpolation
        return
    if secret:
        raise ConfigError(
            f"hydra.sweeper.storage={_shown(str(url))}: a password here would be written into run "
            "folders; give it as PGPASSWORD, in ~/.pgpass or a service file, or the whole address "
            "as hydra.sweeper.storage='${oc.env:NAME}'"
        )


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _url(folder: Path, settings: Settings) -> str:
    return settings.storage or f"sqlite:///{folder / 'study.db'}"


def _noted(folder: Path, name: str) -> dict[str, Any]:
    """`study.json`: which study is this folder's; its first start writes it.

    A server holds the studies of many folders; the id tells ours from another of that name.
    """
    try:
        return record.read_json(folder, "study.json")
    except FileNotFoundError:
        noted = {"name": name, "id": uuid.uuid4().hex}
        record.write_json(folder, "study.json", noted)
        return noted


_lost: set[str] = set()


def persist(call: Callable[[], T]) -> T:
    """Repeats a call that may safely be repeated until the database takes it, and says so.

    A result is good even if the database is locked or its server restarts just now.

    Raises:
        Lost: it did not within `PATIENCE`; further calls are then not repeated.
    """
    wait, until = 0.05, time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            return call()
        except _faults() as error:
            reason = _reason(error)
            if _lost or time.monotonic() > until:
                _lost.add(reason)
                raise Lost(f"The study's database is gone ({reason})") from None
        if not told and time.monotonic() > until - PATIENCE + 1:
            told = True
            line = f"The study's database does not answer ({reason}); waiting up to {PATIENCE:g} s"
            print(line, file=sys.stderr, flush=True)
        time.sleep(wait)
        wait = min(2 * wait, 2.0)


@functools.cache
def load(address: Address) -> optuna.Study:
    """Opens a study that exists, to be told of trials and not to be asked for any."""
    sampler = optuna.samplers.RandomSampler()
    return optuna.load_study(study_name=address.name, storage=storage(address.url), sampler=sampler)


def tell(address: Address, number: int, run: Path, objectives: Sequence[str]) -> None:
    """Tells the study how a trial ended, from its finished run folder.

    Does nothing for a trial that is told already or that another attempt has taken over.
    """
    summary = record.summary(run)
    assert summary is not None

    def once() -> None:
        study, backend = load(address), storage(address.url)
        trial = study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished() or trial.user_attrs.get("run") != run.name:
            return
        if summary["reason"]:
            backend.set_trial_user_attr(trial._trial_id, "reason", summary["reason"])
        if trial.state == TrialState.WAITING:
            backend.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        if summary["state"] == "COMPLETE":
            values = [summary[name] for name in objectives]
            study.tell(number, values, skip_if_finished=True)
        else:
            failed = summary["state"] == "FAILED"
            state = TrialState.FAIL if failed else TrialState.PRUNED
            study.tell(number, state=state, skip_if_finished=True)

    persist(once)


class SweepStudy:
    """The study of one sweep folder, as the process sees it that drives the sweep.

    Raises:
        ConfigError: the database cannot be opened, or its study is not the one to be continued.
    """

    def __init__(
        self, folder: Path, name: str, space: Space, settings: Settings, seed: int
    ) -> None:
        self.folder = folder
        self.space = space
        self.objectives = settings.objective
        self.worker = uuid.uuid4().hex[:12]
        self.lock = FileLock(folder / ".study.lock")
        with self.lock:
            url = _url(folder, settings)
            try:
                self.study = self._open(name, settings, seed)
            except _faults() as error:  # as when the disk fills up just now
                raise ConfigError(
                    f"hydra.sweeper.storage={_shown(url)}: {_reason(error)}"
                ) from None
            # Not `FileLock`: a fork of this process would hold that beyond the process's death.
            self._alive = os.open(self._worker_lock(self.worker), os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(self._alive, fcntl.LOCK_EX)
        self.address = Address(url, self.study.study_name)

    def _open(self, name: str, settings: Settings, seed: int) -> optuna.Study:
        """Creates the study, or makes sure that it is the one to be continued."""
        backend = reachable(_url(self.folder, settings))
        noted = _noted(self.folder, name)
        name = noted["name"]
        study = (
            optuna.load_study(study_name=name, storage=backend)
            if name in optuna.get_all_study_names(backend)
            else optuna.create_study(
                study_name=name, storage=backend, directions=settings.direction
            )
        )
        if study.user_attrs.setdefault("folder", noted["id"]) != noted["id"]:
            raise ConfigError(
                f"hydra.sweeper.storage: its study {name} belongs to another folder; "
                "name=another begins a new one"
            )
        agreement.agree(study, self.space, settings)
        starts = study.user_attrs.get("starts", 0)
        study.set_user_attr("folder", noted["id"])
        study.set_user_attr("starts", starts + 1)
        study.sampler = make_sampler(settings, seed, starts)
        return study

    def close(self) -> None:
        """Says that this process works on the sweep no longer."""
        os.close(self._alive)
        self._worker_lock(self.worker).unlink(missing_ok=True)
        disconnect()

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; not to be changed."""
        return persist(lambda: self.study.get_trials(deepcopy=False))

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
            return persist(lambda: self._ask(extend))

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
            point = space.points[len(trials)] if len(trials) < len(space.points) else {}
            self.study.enqueue_trial(point, user_attrs=space.fixed)
        trial = self.study.ask(space.distributions)
        if extend:
            extend(trial)
        run = record.reserve(self.folder / str(trial.number))
        note = {
            "trial": trial.number,
            "params": trial.params,
            "default": space.is_default(trial.params),
            "objective": self.objectives,
            "direction": [direction.name.lower() for direction in self.study.directions],
            "worker": self.worker,
        }
        record.write_json(run, "trial.json", note)
        trial.set_user_attr("run", run.name)
        return trial, run

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
        persist(lambda: backend.set_trial_state_values(trial._trial_id, TrialState.WAITING))

    def _worker(self, trial: FrozenTrial) -> str | None:
        """The process that has a trial; None if it stopped before it could say so.

        To be asked with the lock held: a process that is about to say so holds it.
        """
        run = self._run(trial)
        return str(record.read_json(run, "trial.json")["worker"]) if run else None

    def _run(self, trial: FrozenTrial) -> Path | None:
        """A trial's run folder; never one outside of the sweep's, whatever the database says."""
        if "run" not in trial.user_attrs:
            return None
        run = self.folder / Path(str(trial.user_attrs["run"])).name
        return run if (run / "trial.json").exists() else None

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None or worker == self.worker:
            return worker is not None
        path = self._worker_lock(worker)
        try:
            with open(path, "r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def processes(self) -> int:
        """How many processes are at work on the sweep now, this one included."""
        with self.lock:
            names = [path.name for path in self.folder.glob(".worker-*.lock")]
            workers = [name.removeprefix(".worker-").removesuffix(".lock") for name in names]
            return sum(self._is_alive(worker) for worker in workers)

    def _worker_lock(self, worker: str) -> Path:
        return self.folder / f".worker-{worker}.lock"
