"""The database of a study: an SQLite file, a server, or Optuna's gRPC proxy in front of a server.

Each process opens a database once, and waits for a database that does not answer.
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
PATIENCE = 180.0  # seconds to wait for a locked or restarting database
SQLITE_WAIT = 20.0  # seconds of each call in which SQLite itself waits for a lock


@dataclass(frozen=True)
class Address:
    """The location of a study. Each worker process opens it anew."""

    url: str
    name: str


_opened: dict[str, BaseStorage] = {}


def storage(url: str) -> BaseStorage:
    """Open a database once in a process, creating its tables if it has none.

    Args:
        url: an SQLAlchemy URL or `grpc://host:port`; interpolations are resolved here.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, ImportError, ConnectionError: the server, driver or file
            does not exist.
    """
    if url not in _opened:
        resolved = str(OmegaConf.create({"url": url}).url)
        is_proxy = resolved.startswith("grpc://")
        _opened[url] = _open_proxy(resolved) if is_proxy else _open_database(resolved)
    return _opened[url]


def _open_proxy(url: str) -> BaseStorage:
    address = urlsplit(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        opened = GrpcStorageProxy(host=address.hostname or "localhost", port=address.port or 13000)
    opened.wait_server_ready(5)
    return opened


def _open_database(url: str) -> BaseStorage:
    is_file = url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": SQLITE_WAIT}} if is_file else {"pool_pre_ping": True}
    opened = RDBStorage(url, engine_kwargs=arguments)
    if is_file:
        # By default SQLite locks at the first write: two processes that have read the same waiting
        # trial would both get it.
        engine = opened.engine
        sqlalchemy.event.listen(engine, "connect", _disable_driver_transactions)
        sqlalchemy.event.listen(engine, "begin", _begin_immediate)
        engine.dispose()
    return opened


def disconnect() -> None:
    """Close all databases that this process has opened."""
    for opened in _opened.values():
        opened.remove_session()
        if isinstance(opened, RDBStorage):
            opened.engine.dispose()
        if isinstance(opened, GrpcStorageProxy):
            opened.close()
    _lost.clear()
    load.cache_clear()
    _opened.clear()


def _disable_driver_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def faults() -> tuple[type[Exception], ...]:
    """Return the exception types of a database that is locked, restarts or is gone."""
    grpc = sys.modules.get("grpc")
    proxied = (grpc.RpcError,) if grpc else ()
    return (StorageInternalError, sqlalchemy.exc.DBAPIError, ConnectionError, *proxied)


def _reason(error: Exception) -> str:
    message = error.details() if hasattr(error, "details") else error.__cause__ or error
    return (str(message).strip().splitlines() or [type(error).__name__])[0]


def refusal(url: str, error: Exception) -> ConfigError:
    """Return the error for a database that fails before the sweep has begun."""
    return ConfigError(f"hydra.sweeper.storage={_without_password(url)}: {_reason(error)}")


def connect(url: str) -> BaseStorage:
    """Open a database, or explain in one line why it cannot be opened.

    Raises:
        ConfigError: the server, driver, file or URL scheme does not exist.
    """
    try:
        try:
            return storage(url)
        except (StorageInternalError, sqlalchemy.exc.DBAPIError):
            time.sleep(1)  # another process may be creating the tables
            return storage(url)
    except Exception as error:
        mistakes = (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, ConnectionError)
        if not isinstance(error, (*mistakes, *faults())):
            raise
        if isinstance(error, ImportError):
            extra = "grpc" if url.startswith("grpc") else "postgresql"
            raise ConfigError(
                f"{refusal(url, error)}; pip install 'fmnist-sweep[{extra}]' installs the "
                f"driver for {extra}; other databases need their own"
            ) from None
        raise ConfigError(
            f"{refusal(url, error)}; it takes an SQLAlchemy URL such as sqlite:////folder/study.db "
            "or postgresql+psycopg://user@host/database, or grpc://host:port of Optuna's proxy"
        ) from None


def refuse_password(url: str | None) -> None:
    """Refuse a password in the unresolved storage URL: every run folder would hold a copy.

    Raises:
        ConfigError: the URL contains a password.
    """
    try:
        address = sqlalchemy.make_url(url or "")
    except sqlalchemy.exc.ArgumentError:  # no URL, or an interpolation
        return
    if address.password or "password" in address.query:
        raise ConfigError(
            f"hydra.sweeper.storage={_without_password(str(url))}: a password here would be "
            "written into run folders; give it as PGPASSWORD, in ~/.pgpass or a service file, or "
            "the whole address as hydra.sweeper.storage='${oc.env:NAME}'"
        )


def portable_url(unresolved: str | None, resolved: str | None) -> str | None:
    """Return a storage URL for other processes, some of which read it from a file.

    The path of an SQLite file becomes absolute, as the processes may run in other directories. A
    server's URL keeps its `${oc.env:...}` interpolations: the processes have the same environment.

    Args:
        unresolved: the URL as configured, with its interpolations.
        resolved: the URL with all interpolations replaced.
    """
    if (resolved or "").startswith("sqlite"):
        return absolute_url(str(resolved))
    interpolated = re.findall(r"\$\{(?:oc\.env:)?", unresolved or "")
    return unresolved if interpolated and set(interpolated) == {"${oc.env:"} else resolved


def _without_password(url: str) -> str:
    try:
        shown = sqlalchemy.make_url(url).difference_update_query(["password"])
        return shown.render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


_lost: set[str] = set()  # reasons for which databases were given up


def retry(call: Callable[[], T]) -> T:
    """Repeat an idempotent call until the database accepts it; print one line while waiting.

    The call survives a locked database and a restart of the server.

    Raises:
        StorageUnavailable: the database did not accept it within `PATIENCE`; later calls are then
            tried once only.
    """
    wait, until = 0.05, time.monotonic() + PATIENCE
    warned = False
    while True:
        try:
            return call()
        except faults() as error:
            reason = _reason(error)
            if _lost or time.monotonic() > until:
                _lost.add(reason)
                raise StorageUnavailable(f"The study's database is gone ({reason})") from None
        if not warned and time.monotonic() > until - PATIENCE + 1:
            warned = True
            line = f"The study's database does not answer ({reason}); waiting up to {PATIENCE:g} s"
            print(line, file=sys.stderr, flush=True)
        time.sleep(wait)
        wait = min(2 * wait, 2.0)


@functools.cache
def load(address: Address) -> optuna.Study:
    """Open an existing study to tell it of trials; its sampler must not be asked for any."""
    sampler = optuna.samplers.RandomSampler()
    return optuna.load_study(study_name=address.name, storage=storage(address.url), sampler=sampler)


def read_trial(address: Address, number: int) -> FrozenTrial:
    """Return a trial as the database has it now, without reading the other running trials."""
    study, backend = load(address), storage(address.url)
    return backend.get_trial(
        backend.get_trial_id_from_study_id_trial_number(study._study_id, number)
    )
