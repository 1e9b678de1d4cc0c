"""The database of a study: opened once in a process, waited for when it does not answer.

An SQLite file, a server, or Optuna's gRPC proxy before one.
"""

import functools
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from omegaconf import OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial

from fmnist_sweep.base.errors import ConfigError, StorageUnavailable
from fmnist_sweep.base.files import absolute_url

T = TypeVar("T")
PATIENCE = 180.0  # seconds that a locked or restarting database is waited for
SQLITE_WAIT = 20.0  # of them, seconds that SQLite itself waits for a lock each time


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
        where = str(OmegaConf.create({"url": url}).url)
        _opened[url] = _proxy(where) if where.startswith("grpc://") else _database(where)
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


def disconnect() -> None:
    """Closes what this process has opened."""
    for opened in _opened.values():
        opened.remove_session()
        if isinstance(opened, RDBStorage):
            opened.engine.dispose()
        if isinstance(opened, GrpcStorageProxy):
            opened.close()
    _lost.clear()
    load.cache_clear()
    _opened.clear()


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def faults() -> tuple[type[Exception], ...]:
    """What a database raises that is locked, restarts or is gone."""
    grpc = sys.modules.get("grpc")
    proxied = (grpc.RpcError,) if grpc else ()
    return (StorageInternalError, sqlalchemy.exc.DBAPIError, ConnectionError, *proxied)


def _reason(error: Exception) -> str:
    said = error.details() if hasattr(error, "details") else error.__cause__ or error
    return (str(said).strip().splitlines() or [type(error).__name__])[0]


def refusal(url: str, error: Exception) -> ConfigError:
    """What to raise where a database refuses before anything has begun."""
    return ConfigError(f"hydra.sweeper.storage={_shown(url)}: {_reason(error)}")


def reachable(url: str) -> BaseStorage:
    """Opens a database.

    Raises:
        ConfigError: its server, driver, file or scheme is not there.
    """
    try:
        try:
            return storage(url)
        except (StorageInternalError, sqlalchemy.exc.DBAPIError):
            time.sleep(1)  # two processes that create the tables at once
            return storage(url)
    except Exception as error:
        mistakes = (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, ConnectionError)
        if not isinstance(error, (*mistakes, *faults())):
            raise
        if isinstance(error, ImportError):
            extra = "grpc" if url.startswith("grpc") else "postgresql"
            raise ConfigError(
                f"{refusal(url, error)}; pip install 'fmnist-sweep[{extra}]' brings it for "
                f"{extra}, other databases want their own driver"
            ) from None
        raise ConfigError(
            f"{refusal(url, error)}; it takes an SQLAlchemy URL such as sqlite:////folder/study.db "
            "or postgresql+psycopg://user@host/database, or grpc://host:port of Optuna's proxy"
        ) from None


def check_written(url: str | None) -> None:
    """Refuses a password in a storage as it is written, which every run folder would repeat.

    Raises:
        ConfigError: there is one.
    """
    try:
        address = sqlalchemy.make_url(url or "")
    except sqlalchemy.exc.ArgumentError:  # none, or an interpolation
        return
    if address.password or "password" in address.query:
        raise ConfigError(
            f"hydra.sweeper.storage={_shown(str(url))}: a password here would be written into run "
            "folders; give it as PGPASSWORD, in ~/.pgpass or a service file, or the whole address "
            "as hydra.sweeper.storage='${oc.env:NAME}'"
        )


def as_it_travels(written: str | None, resolved: str | None) -> str | None:
    """An address for other processes, some of which read it from a file.

    A file is named from its root, as they may work elsewhere; what a server's address takes from
    the environment is left out, as they have it too.
    """
    if (resolved or "").startswith("sqlite"):
        return absolute_url(str(resolved))
    interpolated = re.findall(r"\$\{(?:oc\.env:)?", written or "")
    return written if interpolated and set(interpolated) == {"${oc.env:"} else resolved


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        shown = sqlalchemy.make_url(url).difference_update_query(["password"])
        return shown.render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


_lost: set[str] = set()


def retry(call: Callable[[], T]) -> T:
    """Repeats a call that may safely be repeated until the database takes it, and says so.

    A result is good even if the database is locked or its server restarts just now.

    Raises:
        StorageUnavailable: it did not within `PATIENCE`; further calls are then not repeated.
    """
    wait, until = 0.05, time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            return call()
        except faults() as error:
            reason = _reason(error)
            if _lost or time.monotonic() > until:
                _lost.add(reason)
                raise StorageUnavailable(f"The study's database is gone ({reason})") from None
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


def read_trial(address: Address, number: int) -> FrozenTrial:
    """One trial as the database has it now, without reading all those at work beside it."""
    study, backend = load(address), storage(address.url)
    return backend.get_trial(
        backend.get_trial_id_from_study_id_trial_number(study._study_id, number)
    )
