"""What a shell, a folder or a machine does to a command: no trial, no page and no line too many."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy
import torch
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from fmnist_sweep.base import processes
from fmnist_sweep.base.errors import MachineFault
from fmnist_sweep.base.files import absolute_url, sqlite_url
from fmnist_sweep.engine import workers
from fmnist_sweep.results import ranking
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.sweep import database
from tests import sweeps
from tests.conftest import ROOT, SMALL, Command
from tests.sweeps import trial

TINY = (sys.executable, "-m", "tests.tiny_task", "-m", "trainer.epochs=1", "name=a")


@pytest.fixture
def shell(tmp_path: Path, data_root: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs a line of bash, where `"$@"` is the command that it is about, in an empty folder."""

    def run(line: str, *command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        usual = {"PYTHONPATH": str(ROOT), "FMNIST_SWEEP_DATA": str(data_root)}
        return subprocess.run(
            ["bash", "-c", line, "bash", *command],
            cwd=tmp_path,
            env={**os.environ, **usual, **environment},
            capture_output=True,
            timeout=120,
        )

    return run


# Processes


@pytest.mark.slow
def test_a_sweep_of_processes_after_threads_have_run(fmnist_train: Command) -> None:
    """A fork of a process whose OpenMP threads have run waits for them without end."""
    grid = ("seed=0,1", "trainer.threads=2", "hydra/launcher=basic", "name=a")
    outcome = fmnist_train("-m", *SMALL[:3], *grid)
    assert outcome.code == 0, outcome.err
    for run in "01":
        environment = json.loads(Path("multirun/a", run, "environment.json").read_text())
        assert environment["threads"] == 2


def test_no_process_is_a_fork_of_this_one() -> None:
    """Neither by name nor by default: the servers of `multiprocessing` are new programs."""
    for file in (ROOT / "fmnist_sweep").rglob("*.py"):
        text = file.read_text()
        for word in ('get_context("fork")', "os.fork", "ProcessPoolExecutor()", ".Pool("):
            assert word not in text, f"{file}: {word}"


def call_with(environment: str) -> tuple[str | None, str, int]:
    return os.environ.get(environment), os.getcwd(), os.getpid()


def test_a_call_in_a_process_has_this_ones_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("one", "two"):
        monkeypatch.setenv("OF_A_TEST", value)
        found = processes.call_in_process(lambda: call_with("OF_A_TEST"), workers.__name__)
        assert found[:2] == (value, str(tmp_path)) and found[2] != os.getpid()
    with pytest.raises(ValueError, match="theirs"):
        processes.call_in_process(lambda: int("theirs"), workers.__name__)
    with pytest.raises(processes.ProcessDied, match="exit code 7"):
        processes.call_in_process(lambda: os._exit(7), workers.__name__)


@pytest.mark.parametrize("launcher", ["stacked", "basic"])
def test_a_machine_that_starts_no_process_fails_no_trial(
    launcher: str, fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("-m", "seed=0,1", *SMALL[:3], f"hydra/launcher={launcher}", "name=a")
    where = "fmnist_sweep.engine.workers.start" if launcher == "stacked" else None

    def no_process(_: object) -> None:
        raise MachineFault("no process can be started (Too many of them)")

    with monkeypatch.context() as patch:
        patch.setattr(where or "fmnist_sweep.base.processes.start", no_process)
        outcome = fmnist_train(*grid)
    assert outcome.code == 1 and "no process can be started" in outcome.err.splitlines()[-1]
    assert "2 trials left. Run the same command to resume." in outcome.err
    outcome = fmnist_train(*grid)
    assert outcome.code == 0, outcome.err
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 2


def test_missing_data_fails_no_trial(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    from fmnist_sweep.task.data import source
    from fmnist_sweep.task.data.idx import SourceError

    def nothing(*_: object) -> Path:
        raise SourceError("not here")

    grid = ("-m", "seed=0,1", *SMALL, "name=a")
    with monkeypatch.context() as patch:
        patch.setenv("FMNIST_SWEEP_DATA", "elsewhere")
        for name in ("_find_installed", "_download_torchvision", "_download_apt"):
            patch.setattr(f"fmnist_sweep.task.data.fetch.{name}", nothing)
        outcome = fmnist_train(*grid)
    assert outcome.code == 1 and "Fashion-MNIST was not found" in outcome.err
    assert "2 trials left. Run the same command to resume." in outcome.err
    assert source.locate(data_root)
    assert fmnist_train(*grid).code == 0
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("error", "is_machines"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (MachineFault("x"), True),
        (ValueError("x"), False),
    ],
)
def test_whose_fault_an_error_is(error: Exception, is_machines: bool) -> None:
    from fmnist_sweep.base.errors import is_machine_fault

    assert is_machine_fault(error) is is_machines


@pytest.mark.slow
def test_a_long_temporary_folder_is_no_obstacle(
    shell: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    long = tmp_path / ("t" * 80)
    long.mkdir()
    train = (sys.executable, "-m", "fmnist_sweep.train", "-m", *SMALL, "seed=0,1", "name=a")
    done = shell('"$@"', *train, TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "multirun/a/sweep.csv").state) == ["COMPLETE"] * 2


# Streams

STREAMS = {
    "none": '"$@" >&- 2>&-',
    "a full disk": '"$@" >/dev/full 2>/dev/full',
    "a reader that leaves": '"$@" | head -1',
    "a C locale": 'MPLBACKEND=of.a.notebook PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C "$@"',
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [*STREAMS][:1] + [pytest.param(kind, marks=pytest.mark.torture) for kind in [*STREAMS][1:]],
)
def test_streams_cost_no_trial_and_no_page(
    kind: str, shell: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    done = shell(f"set -o pipefail; {STREAMS[kind]}", *TINY, "optimizer.lr=0.001,0.01")
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    folder = tmp_path / "multirun/a"
    assert list(pd.read_csv(folder / "sweep.csv").state) == ["COMPLETE"] * 2
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_single_run_whose_reader_leaves(
    shell: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    train = (sys.executable, "-m", "fmnist_sweep.train", *SMALL[:3], "hydra.run.dir=run")
    done = shell('set -o pipefail; "$@" | head -1', *train)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert (tmp_path / "run/summary.json").exists()
    assert "Run folder" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("full_error", [None, "0", "1"])
def test_a_mistake_is_one_line_whatever_hydra_is_told(
    full_error: str | None, fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if full_error is None:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    else:
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    for mistake in (("-m", "optimizer.lr=0.1,-1"), ("optimizer.lr=-1",), ("optimizer.rl=1",)):
        outcome = fmnist_train(*mistake)
        assert outcome.code == 1 and len(outcome.err.splitlines()) == 1, outcome.err
    assert os.environ.get("HYDRA_FULL_ERROR") == full_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "full_error"), [(("name=a", "-m", "seed=0,1"), "0"), (("hydra.run.dir=run",), "1")]
)
def test_an_interruption_is_one_line(
    mode: tuple[str, ...], full_error: str, tmp_path: Path, data_root: Path
) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fmnist_sweep.train",
            "trainer.epochs=1000",
            "trainer.compile=false",
            *SMALL[:1],
            *mode,
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FMNIST_SWEEP_DATA": str(data_root),
            "HYDRA_FULL_ERROR": full_error,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not any(tmp_path.rglob("history.csv")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.startswith("Interrupted") and len(err.splitlines()) == 1, err


# Paths

FOLDERS = ["what?", "a{b}c", "a#b", "a%20b", "a;b=c,d", "a'b\"c", "back\\slash", "ü ß"]


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        *((name, "stacked") for name in ("what?", "a{b}c", "a'b\"c")),
        ("back\\slash #%20;=,", "basic"),
        *(pytest.param(name, "basic", marks=pytest.mark.torture) for name in FOLDERS),
    ],
)
def test_a_directory_of_any_name(
    name: str, launcher: str, tiny: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    grid = ("-m", "trainer.epochs=1", "seed=0,1", "name=a", f"hydra/launcher={launcher}")
    outcome = tiny(*grid)
    assert outcome.code == 0, outcome.err
    database.disconnect()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert sorted(path.name for path in Path().iterdir()) == ["multirun"]
    assert Path("multirun/a/study.db").exists()
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 2


@pytest.mark.parametrize("name", FOLDERS)
def test_a_url_of_any_path(name: str) -> None:
    path = Path("/folder") / name / "study.db"
    assert sqlalchemy.make_url(sqlite_url(path)).database == str(path)
    relative = sqlalchemy.URL.create("sqlite", database=f"{name}/study.db").render_as_string()
    assert absolute_url(relative, "/folder") == sqlite_url(path)


@pytest.mark.torture
@pytest.mark.parametrize("launcher", ["basic", "stacked", "joblib"])
def test_paths_of_weights_mean_the_directory_of_the_command(
    launcher: str, fmnist_train: Command, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the data, the study and the weights, though each trial works in its run folder."""
    monkeypatch.delenv("FMNIST_SWEEP_DATA")
    Path("data").symlink_to(data_root)
    resnet = ("model=resnet18", "data.train_size=10", "data.val_size=10", "trainer.epochs=1")
    assert fmnist_train(*resnet, "hydra.run.dir=before", "hydra.job.chdir=true").code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["before", "data"]
    outcome = fmnist_train(
        *("-m", *resnet, "seed=0,1", "model.weights=before/model.pt", "name=a"),
        *("hydra.job.chdir=true", "hydra.sweeper.storage=sqlite:///rel.db"),
        *(
            f"hydra/launcher={launcher}",
            *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []),
        ),
    )
    database.disconnect()
    assert outcome.code == 0, outcome.err
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 2
    assert sorted(path.name for path in Path().iterdir()) == [
        "before",
        "data",
        "multirun",
        "rel.db",
    ]
    assert not any(path.name in ("data", "rel.db") for path in Path("multirun").rglob("*"))


def test_paths_mean_the_directory_of_the_command(
    fmnist_train: Command, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA")
    Path("data").symlink_to(data_root)
    where = ("hydra.job.chdir=true", "hydra.sweeper.storage=sqlite:///rel.db")
    outcome = fmnist_train("-m", *SMALL[:3], "seed=0,1", "hydra/launcher=basic", *where, "name=a")
    database.disconnect()
    assert outcome.code == 0, outcome.err
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 2
    assert sorted(path.name for path in Path().iterdir()) == ["data", "multirun", "rel.db"]
    assert not any(path.name in ("data", "rel.db") for path in Path("multirun").rglob("*"))


# Text of a user's is text


class Wordy(nn.Linear):
    """A network with an argument of any words."""

    def __init__(self, acts: object) -> None:
        super().__init__(784, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1))


WORDY = ("-m", "trainer.epochs=1", "~model", "+model._target_=tests.test_surroundings.Wordy")


def test_words_that_are_markup_elsewhere(
    tiny: Command, report: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    words = ["[relu,tanh]", "[tanh,relu]", "[/a/b]", "[red]"]
    texts = ["$a^\\frac$ $", ":smile:", "<b>bold</b>"]
    swept = ",".join([*words, *(f"'{text}'" for text in texts)])
    outcome = tiny(*WORDY, f"+model.acts={swept}", "seed=0,1", "name=a")
    assert outcome.code == 0, outcome.err
    for text in (*words, *texts):
        assert sum(text in line for line in outcome.out.splitlines()) >= 2, text
    outcome = report("multirun/a")
    assert outcome.code == 0, outcome.err
    for name in ("slices", "grid"):
        assert Path(f"multirun/a/plots/{name}.png").exists()
    for text in (*words, *texts):
        assert text in outcome.out
    database.disconnect()


def test_a_narrow_terminal_keeps_what_is_needed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = {"optimizer.lr": 0.123456, "data.batch_size": 128, "trainer.label_smoothing": 0.1}
    folder = sweeps.write(tmp_path / "a", [trial(0.8, params=long), trial(0.9, params=long)])
    sweep = Sweep(folder)
    sweep.update()
    for width in (60, 80, 160):
        screen = Console(width=width, markup=False)
        capfd.readouterr()
        ranking.show(list(sweep.runs.values()), screen)
        out = capfd.readouterr().out
        assert "…" not in out and "rank" in out and "80.00" in out and "90.00" in out
        assert max(map(len, out.splitlines()[:4])) <= width
        assert ("Too narrow to show: seconds" in out) == (width < 160)


def test_what_is_optimised_is_a_column_however_narrow_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = {"optimizer.lr": 0.123456, "data.batch_size": 128}
    trials = [trial(0.8, params=params, values={"best_val_accuracy": 0.8125})]
    folder = sweeps.write(
        tmp_path / "a", trials, objective=["best_val_accuracy"], direction=["maximize"]
    )
    sweep = Sweep(folder)
    sweep.update()
    for width in (50, 160):
        capfd.readouterr()
        ranking.show(list(sweep.runs.values()), Console(width=width, markup=False))
        out = capfd.readouterr().out
        assert "best_val_accuracy" in out and "0.8125" in out


# What is said of what has no effect


def test_a_search_without_m_says_so(fmnist_train: Command, small: tuple[str, ...]) -> None:
    outcome = fmnist_train(*small[:3], "search=lr")
    assert outcome.code == 0
    assert "search=lr: add -m to search optimizer.lr; without it, this is" in outcome.err


def test_keys_that_a_sweep_does_not_use_are_named(tiny: Command) -> None:
    grid = ("-m", "trainer.epochs=1", "seed=0,1", "name=a")
    outcome = tiny(*grid, "hydra.sweep.subdir=x", "hydra.output_subdir=null")
    assert outcome.code == 0
    assert "hydra.sweep.subdir=x: not used" in outcome.err
    assert "hydra.output_subdir=None: not used" in outcome.err
    assert Path("multirun/a/1/.hydra/config.yaml").exists()
    database.disconnect()


class Noting(Callback):
    """A callback of the user's own package."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        Path("called").write_text(job_return.status.name)


@pytest.mark.filterwarnings("ignore:LogJobReturnCallback")
def test_callbacks_of_the_user_and_of_hydra_are_called(
    tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    """In a process of its own: the list of trusted packages is read when the command starts."""
    train = (sys.executable, "-W", "ignore", "-m", "fmnist_sweep.train", *SMALL[:3])
    callbacks = (
        "+hydra.callbacks.mine._target_=tests.test_surroundings.Noting",
        "+hydra.callbacks.log._target_=hydra.experimental.callbacks.LogJobReturnCallback",
    )
    done = shell('"$@"', *train, *callbacks, "hydra.run.dir=r", FMNIST_SWEEP_TRUST="tests.*")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text() == "COMPLETED"


def test_threads_that_the_environment_takes_away_are_told(
    fmnist_train: Command, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = fmnist_train(*small[:3], "trainer.threads=2", "hydra.run.dir=run")
    assert outcome.code == 0
    assert "trainer.threads=2: OMP_NUM_THREADS leaves 1" in outcome.out
    assert json.loads(Path("run/environment.json").read_text())["threads"] == 1


def test_cores_are_those_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert processes.cores() == 1
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    assert 1 <= processes.cores() <= (os.cpu_count() or 1)


def test_a_log_is_utf8(tiny: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    assert tiny(*WORDY, "+model.acts='ü±',b", "seed=100", "name=a").code == 1
    config = OmegaConf.load("multirun/a/0/.hydra/hydra.yaml")
    assert config.hydra.job_logging.handlers.file.encoding == "utf-8"
    database.disconnect()
