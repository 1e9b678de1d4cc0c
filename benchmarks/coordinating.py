"""Measure how many workers one study keeps busy, with trials that only sleep.

Nothing is trained and no Hydra job runs. The workers use only the study, its folder and its
database: a PostgreSQL server, reached directly or through Optuna's gRPC proxy.
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
PROCESSES = 32  # maximum, 130 MB each; further workers are threads of these processes
TRIAL_SECONDS = 1.0
WINDOW = 20.0  # seconds in which finished trials are counted, once all workers run
RESULT = "result.json"
SIZES = (100, 1000, 10_000)  # finished trials of a study when the overhead is measured
SPACE = Space(
    distributions={"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)},
    key_elements={},
    raw_choices={},
    fixed_values={},
    fixed_overrides=[],
    initial_points=[],
    defaults={},
    base={},
    n_trials=10**9,
    is_exhaustive=False,
    is_grid=False,
)
PROXY = (
    "import sys, warnings; from optuna import logging;"
    "from optuna.storages import get_storage, run_grpc_proxy_server;"
    "warnings.simplefilter('ignore'); logging.set_verbosity(logging.ERROR);"
    "run_grpc_proxy_server(get_storage(sys.argv[1]), port=int(sys.argv[2]))"
)


def settings(storage: str) -> Settings:
    """Return the settings of a random search, the sampler with the least overhead."""
    return Settings.model_construct(
        objective=["val_accuracy"],
        direction=["maximize"],
        storage=storage,
        custom_search_space=None,
        accept_changes=False,
        constraints={},
        seed_key=None,
        repeats=None,
        sampler={"_target_": "optuna.samplers.RandomSampler"},
    )


def measure(server: str) -> dict[str, Any]:
    """Measure the throughput of many workers, and the overhead of one trial in large studies.

    Args:
        server: SQLAlchemy URL of a PostgreSQL server on which databases may be created; each
            measurement creates one and drops it.

    Returns:
        `rates`: trials per second by backend and number of workers; `sizes`: the results of
        `cost` by backend and number of trials in the study.

    Raises:
        ConfigError: the server or its driver does not exist.
    """
    check(server)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[str, dict[int, float]] = {}
    sizes: dict[str, dict[int, dict[str, float]]] = {}
    for backend, address in (("PostgreSQL", contextlib.nullcontext), ("gRPC proxy", proxy)):
        rates[backend], sizes[backend] = {}, {}
        for workers in WORKERS:
            with new_database(server) as url, address(url) as storage:
                rates[backend][workers] = rate(storage, workers)
        for size in SIZES:
            with new_database(server) as url, address(url) as storage:
                sizes[backend][size] = cost(storage, size)
    return {"rates": rates, "sizes": sizes}


def check(server: str) -> None:
    """Refuse a server that does not answer.

    Raises:
        ConfigError: the server or its driver does not exist.
    """
    try:
        sqlalchemy.create_engine(server).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise ConfigError(f"--server: {first_line(error)}") from None


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Create an empty database on the server, yield its URL and drop it."""
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
    """Run Optuna's proxy for a database in another process; yield the proxy's URL."""
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
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("localhost", port)).close()
            return
        time.sleep(0.1)


def rate(storage: str, workers: int) -> float:
    """Return the number of trials that the workers finish per second."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder)
        _run_in_process(_create_study, sweep, storage)
        stop = sweep / "stop"
        processes = min(workers, PROCESSES)
        threads = workers // processes
        children = [_start(_run_workers, sweep, storage, stop, threads) for _ in range(processes)]
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


def _create_study(sweep: Path, storage: str) -> None:
    SweepStudy(sweep, "bench", SPACE, settings(storage), 0).close()


def _run_workers(sweep: Path, storage: str, stop: Path, workers: int) -> None:
    """Run several workers as threads of this process, each with its own study object."""

    def work(seed: int) -> None:
        study = SweepStudy(sweep, "bench", SPACE, settings(storage), seed)
        while not stop.exists():
            _run_trial(study, TRIAL_SECONDS)

    seeds = np.random.SeedSequence(os.getpid()).generate_state(workers)
    threads = [threading.Thread(target=work, args=(int(seed),)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.disconnect()


def _run_trial(study: SweepStudy, seconds: float) -> None:
    (trial,) = study.take(1)
    time.sleep(seconds)
    record.finish(trial.run, "COMPLETE", val_accuracy=trial.params["optimizer.lr"])
    tell(study.address, trial.number, trial.run, study.objectives)


def _finished(sweep: Path) -> int:
    return len(list(sweep.glob("*/summary.json")))


def cost(storage: str, size: int) -> dict[str, float]:
    """Measure the overhead of a study that holds many finished trials.

    Args:
        size: the number of finished trials.

    Returns:
        `open_s`, seconds to open the study and run a trial; `trial_ms`, milliseconds per further
        trial; `mb`, megabytes by which the process grew.
    """
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder)
        _run_in_process(_fill, sweep, storage, size)
        _run_in_process(_measure_overhead, sweep, storage)
        values: dict[str, float] = record.read_json(sweep, RESULT)
        return values


def _measure_overhead(sweep: Path, storage: str) -> None:
    began, before = time.perf_counter(), _megabytes()
    study = SweepStudy(sweep, "bench", SPACE, settings(storage), 0)
    _run_trial(study, 0)
    opened = time.perf_counter() - began
    milliseconds = []
    for _ in range(20):
        began = time.perf_counter()
        _run_trial(study, 0)
        milliseconds.append(1000 * (time.perf_counter() - began))
    times = {"open_s": opened, "trial_ms": statistics.median(milliseconds)}
    record.write_json(sweep, RESULT, {**times, "mb": _megabytes() - before})
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
    """Start a process that has imported this file, but no other benchmark."""
    process = fork_server(__name__).Process(target=work, args=arguments)
    process.start()
    return process


def _run_in_process(work: Callable[..., None], *arguments: Any) -> None:
    process = _start(work, *arguments)
    process.join()
    assert process.exitcode == 0


def table(results: dict[str, Any]) -> str:
    """Return both measurements as Markdown tables."""
    rates, sizes = results["rates"], results["sizes"]
    backends = list(rates)
    lines = [
        f"| workers | {' | '.join(f'{backend}, trials/s' for backend in backends)} |",
        "|---" * (len(backends) + 1) + "|",
        *(
            f"| {workers} | {' | '.join(f'{rates[name][workers]:.1f}' for name in backends)} |"
            for workers in WORKERS
        ),
        "",
        "| finished trials | "
        + " | ".join(f"{k}: ms a trial, s to open, MB" for k in backends)
        + " |",
        "|---" * (len(backends) + 1) + "|",
    ]
    for size in SIZES:
        cells = [sizes[backend][size] for backend in backends]
        texts = [f"{c['trial_ms']:.0f}, {c['open_s']:.1f}, {c['mb']:.0f}" for c in cells]
        lines.append(f"| {size:,} | {' | '.join(texts)} |")
    return "\n".join(lines)


def picture(results: dict[str, Any]) -> bytes:
    """Plot trials per second by workers, with a line for workers that never wait; return a PNG."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(WORKERS, [n / TRIAL_SECONDS for n in WORKERS], "--", color="grey", label="no waiting")
    for backend, marker in zip(results["rates"], "os"):
        values = [results["rates"][backend][workers] for workers in WORKERS]
        axes.plot(WORKERS, values, marker=marker, label=backend)
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
