"""Measure how many workers one study keeps busy, with trials that only sleep.

Nothing is trained and no Hydra job runs: what is left is the study itself, its folder and its
database, a PostgreSQL server spoken to directly or through Optuna's gRPC proxy.
"""

import contextlib
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy

from fmnist_sweep.base.errors import ConfigError, first_line
from fmnist_sweep.base.figures import Figure
from fmnist_sweep.base.processes import fork_server
from fmnist_sweep.results import record
from fmnist_sweep.sweep import database
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, tell

WORKERS = (1, 8, 64, 256)
PROCESSES = 32  # at most, of 130 MB each; more workers are threads of theirs
TRIAL_SECONDS = 1.0
WINDOW = 20.0  # seconds in which finished trials are counted, once all workers are at work
RESULT = "result.json"
SIZES = (100, 1000, 10_000)  # trials that a study has when one more costs what is measured
SPACE = Space(
    {"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)},
    *({}, {}, {}, [], [], {}, {}),
    n_trials=10**9,
    is_grid=False,
)
PROXY = (
    "import sys, warnings; from optuna import logging;"
    "from optuna.storages import get_storage, run_grpc_proxy_server;"
    "warnings.simplefilter('ignore'); logging.set_verbosity(logging.ERROR);"
    "run_grpc_proxy_server(get_storage(sys.argv[1]), port=int(sys.argv[2]))"
)


def settings(storage: str) -> Settings:
    """A search at random, as cheap as suggestions can be."""
    return Settings.model_construct(
        objective=["val_accuracy"],
        direction=["maximize"],
        storage=storage,
        custom_search_space=None,
        accept_changes=False,
        sampler={"_target_": "optuna.samplers.RandomSampler"},
    )


def measure(server: str) -> dict[str, Any]:
    """Trials a second by number of workers, and milliseconds of a trial by size of the study.

    Args:
        server: SQLAlchemy URL of a PostgreSQL server on which databases may be made; each
            measurement makes one and drops it.

    Raises:
        ConfigError: no such server, or no driver for it.
    """
    check(server)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[str, dict[int, float]] = {}
    sizes: dict[str, dict[int, dict[str, float]]] = {}
    for kind, address in (("PostgreSQL", contextlib.nullcontext), ("gRPC proxy", proxy)):
        rates[kind], sizes[kind] = {}, {}
        for workers in WORKERS:
            with new_database(server) as url, address(url) as storage:
                rates[kind][workers] = rate(storage, workers)
        for size in SIZES:
            with new_database(server) as url, address(url) as storage:
                sizes[kind][size] = cost(storage, size)
    return {"rates": rates, "sizes": sizes}


def check(server: str) -> None:
    """Refuse a server that does not answer.

    Raises:
        ConfigError: no such server, or no driver for it.
    """
    try:
        sqlalchemy.create_engine(server).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise ConfigError(f"--server: {first_line(error)}") from None


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """An empty database of the server."""
    name = f"bench_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            url = sqlalchemy.make_url(server).set(database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            database.disconnect()
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@contextlib.contextmanager
def proxy(url: str) -> Iterator[str]:
    """Optuna's proxy before a database, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PROXY, url, str(port)])
    try:
        _wait_for(port)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    """Wait until somebody listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("localhost", port)).close()
            return
        time.sleep(0.1)


def rate(storage: str, workers: int) -> float:
    """Trials that so many processes finish in a second."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder)
        _apart(_begin, sweep, storage)
        stop = sweep / "stop"
        processes = min(workers, PROCESSES)
        each = workers // processes
        children = [_start(_work, sweep, storage, stop, each) for _ in range(processes)]
        while len(list(sweep.glob(".worker-*.lock"))) < workers:
            time.sleep(0.1)
            assert all(child.is_alive() for child in children), "a worker has ended early"
        time.sleep(2 * TRIAL_SECONDS)
        before, began = _finished(sweep), time.monotonic()
        time.sleep(WINDOW)
        finished, seconds = _finished(sweep) - before, time.monotonic() - began
        stop.touch()
        for child in children:
            child.join()
        return finished / seconds


def _begin(sweep: Path, storage: str) -> None:
    SweepStudy(sweep, "bench", SPACE, settings(storage), 0).close()


def _work(sweep: Path, storage: str, stop: Path, workers: int) -> None:
    """Several workers in one process, each with a connection of its own."""

    def work(seed: int) -> None:
        study = SweepStudy(sweep, "bench", SPACE, settings(storage), seed)
        while not stop.exists():
            _one(study, TRIAL_SECONDS)

    seeds = np.random.SeedSequence(os.getpid()).generate_state(workers)
    threads = [threading.Thread(target=work, args=(int(seed),)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.disconnect()


def _one(study: SweepStudy, seconds: float) -> None:
    asked = study.ask(None)
    assert asked
    trial, run = asked
    time.sleep(seconds)
    record.finish(run, "COMPLETE", val_accuracy=trial.params["optimizer.lr"])
    tell(study.address, trial.number, run, study.objectives)


def _finished(sweep: Path) -> int:
    return len(list(sweep.glob("*/summary.json")))


def cost(storage: str, size: int) -> dict[str, float]:
    """What a study of so many finished trials takes to be opened, and for one trial more.

    Returns:
        Seconds to open it, milliseconds of a trial, megabytes of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder)
        _apart(_fill, sweep, storage, size)
        _apart(_one_more, sweep, storage)
        values: dict[str, float] = record.read_json(sweep, RESULT)
        return values


def _one_more(sweep: Path, storage: str) -> None:
    began, before = time.perf_counter(), _megabytes()
    study = SweepStudy(sweep, "bench", SPACE, settings(storage), 0)
    _one(study, 0)
    opened = time.perf_counter() - began
    each = []
    for _ in range(20):
        began = time.perf_counter()
        _one(study, 0)
        each.append(1000 * (time.perf_counter() - began))
    took = {"open_s": opened, "trial_ms": statistics.median(each)}
    record.write_json(sweep, RESULT, {**took, "mb": _megabytes() - before})
    study.close()


def _fill(sweep: Path, storage: str, size: int) -> None:
    study = SweepStudy(sweep, "bench", SPACE, settings(storage), 0)
    for number in range(size):
        value = 1e-4 + number * 1e-9
        study.study.add_trial(
            optuna.create_trial(
                params={"optimizer.lr": value},
                distributions=SPACE.distributions,
                value=value,
                user_attrs={"run": str(number)},
            )
        )
    study.close()


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that has imported this file, and nothing else that the benchmarks need."""
    process = fork_server(__name__).Process(target=work, args=arguments)
    process.start()
    return process


def _apart(work: Callable[..., None], *arguments: Any) -> None:
    process = _start(work, *arguments)
    process.join()
    assert process.exitcode == 0


def table(results: dict[str, Any]) -> str:
    """Both measurements as Markdown."""
    rates, sizes = results["rates"], results["sizes"]
    kinds = list(rates)
    lines = [
        f"| workers | {' | '.join(f'{kind}, trials/s' for kind in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
        *(
            f"| {workers} | {' | '.join(f'{rates[kind][workers]:.1f}' for kind in kinds)} |"
            for workers in WORKERS
        ),
        "",
        "| finished trials | "
        + " | ".join(f"{k}: ms a trial, s to open, MB" for k in kinds)
        + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for size in SIZES:
        cells = [sizes[kind][size] for kind in kinds]
        texts = [f"{c['trial_ms']:.0f}, {c['open_s']:.1f}, {c['mb']:.0f}" for c in cells]
        lines.append(f"| {size:,} | {' | '.join(texts)} |")
    return "\n".join(lines)


def picture(results: dict[str, Any]) -> bytes:
    """Trials a second against workers, beside what workers that never wait would do; a PNG."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(WORKERS, [n / TRIAL_SECONDS for n in WORKERS], "--", color="grey", label="no waiting")
    for kind, marker in zip(results["rates"], "os"):
        values = [results["rates"][kind][workers] for workers in WORKERS]
        axes.plot(WORKERS, values, marker=marker, label=kind)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="workers on one study",
        ylabel="trials finished a second",
        title=f"Trials that sleep {TRIAL_SECONDS:g} s",
    )
    axes.set_xticks(WORKERS, map(str, WORKERS))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    return content.getvalue()
