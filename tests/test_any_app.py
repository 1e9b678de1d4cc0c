"""The sweeper in applications that know nothing of it: as they are in the wild."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT

PAGE = ROOT / "docs/your-own-app.md"
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def app(tmp_path: Path) -> Shell:
    """Runs an application's script `app.py` in an empty folder."""

    def run(*arguments: str, script: str = "app.py") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run


def write(folder: Path, body: str, head: str = "", config: str | None = "lr: 0.1\nn: 3\n") -> None:
    """Writes an application around the body of its function."""
    if config is not None:
        (folder / "conf").mkdir()
        (folder / "conf/config.yaml").write_text(config)
    where = '"conf"' if config is not None else "None"
    (folder / "app.py").write_text(
        f"import hydra, math, os, sys\nfrom hydra.core.hydra_config import HydraConfig\n"
        f"from fmnist_sweep.sweep import report\n{head}\n"
        f"@hydra.main(config_path={where}, config_name='config')\n"
        f"def main(cfg):\n    " + body.strip().replace("\n", "\n    ") + "\n\n"
        "if __name__ == '__main__':\n    main()\n"
    )


STUDY = ("-m", "hydra/sweeper=study", "hydra.sweep.dir=out")


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out/sweep.csv").sort_values("trial", ignore_index=True)


def test_the_page_as_printed(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "digits.py").write_text(code)
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(commands) == 5
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    told = ""
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        told += done.stdout
    assert "percentage points" in told or "better by" in told
    grid = pd.read_csv(tmp_path / "multirun/grid/sweep.csv")
    assert list(grid.columns[:5]) == ["trial", "state", "lr", "hidden", "objective"]
    assert set(grid.state) == {"COMPLETE"} and len(grid) == 6
    assert list(grid.accuracy) == list(grid.objective) and grid.accuracy.max() > 0.9
    curves = pd.read_csv(tmp_path / "multirun/grid/curves.csv")
    assert list(curves.columns) == ["trial", "step", "loss", "accuracy", "seconds"]
    assert list(curves.step) == list(range(1, 11)) * 6
    search = pd.read_csv(tmp_path / "multirun/search/sweep.csv")
    assert len(search) == 10 and set(search.state) == {"COMPLETE", "PRUNED"}
    assert len(pd.read_csv(tmp_path / "multirun/grid/confirm.csv")) == 2


def test_nothing_added(tmp_path: Path, app: Shell) -> None:
    """A grid, a search, failures, resume: of an application that returns a number or fails."""
    write(tmp_path, "if cfg.n == 2:\n    raise ValueError('two\\nis bad')\nreturn cfg.lr * cfg.n")
    done = app(*STUDY, "n=1,2,3", "lr=0.1,0.2")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert list(rows.state) == ["COMPLETE", "COMPLETE", "FAILED", "FAILED", "COMPLETE", "COMPLETE"]
    assert set(rows.reason.dropna()) == {"ValueError: two is bad"}
    assert rows.objective[0] == pytest.approx(0.1) and "val_accuracy" not in rows
    assert (tmp_path / "out/report.html").exists()
    assert "value: minimized" in done.stderr
    again = app(*STUDY, "n=1,2,3", "lr=0.1,0.2")
    assert again.returncode == 0 and "is complete" in again.stdout, again.stderr
    search = ("hydra.sweep.dir=search", "lr=interval(0.1,0.2)", "n=3")
    for trials in (2, 4):
        done = app(*STUDY[:2], *search, f"hydra.sweeper.n_trials={trials}")
        assert done.returncode == 0, done.stderr
        assert len(pd.read_csv(tmp_path / "search/sweep.csv")) == trials


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ("basic", ()),
        ("joblib", ("hydra.launcher.n_jobs=2",)),
        pytest.param("submitit_local", (), marks=pytest.mark.torture),
        pytest.param(
            "ray",
            ("hydra.launcher.init.num_cpus=2", "hydra.sweeper.n_jobs=2"),
            marks=pytest.mark.torture,
        ),
    ],
)
def test_curves_and_pruning_under_every_launcher(
    launcher: str, more: tuple[str, ...], tmp_path: Path, app: Shell
) -> None:
    write(
        tmp_path,
        """
for step in range(0, 50, 10):
    report(step, {"val/acc": cfg.lr * (step + 1)}, extra=1)
""",
    )
    done = app(
        *STUDY,
        "lr=0.1,0.2,0.01,0.02",
        f"hydra/launcher={launcher}",
        *more,
        "hydra.sweeper.objective=val/acc",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
    )
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert list(rows.state) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert rows.objective[1] == pytest.approx(0.2 * 41) == rows["val/acc"][1]
    assert rows.reason[2] == "pruned after step 10"
    curves = pd.read_csv(tmp_path / "out/curves.csv")
    assert list(curves.columns) == ["trial", "step", "val/acc", "extra", "seconds"]
    assert list(curves[curves.trial == 1].step) == [0, 10, 20, 30, 40]
    assert list(curves[curves.trial == 2].step) == [0, 10]


RETURNS = {
    "dictionary": ("return {'accuracy': cfg.lr, 'n_used': 7}", None),
    "last_report": ("report(1, accuracy=0.9); report(2, accuracy=cfg.lr)", None),
    "nothing": ("pass", "returned None instead of accuracy"),
    "another_dictionary": ("return {'loss': 1}", "returned loss instead of accuracy"),
    "not_a_number": ("return math.nan", "accuracy became nan"),
    "too_many": ("return [1, 2]", "returned 2 values instead of accuracy"),
    "text": ("return 'good'", "returned 'good' instead of accuracy"),
    "no_step": ("report(-1, accuracy=1)", "ValueError: report(-1, ...)"),
    "exit": ("sys.exit(3)", "sys.exit(3)"),
}


def test_what_a_function_may_return(tmp_path: Path, app: Shell) -> None:
    body = "\n".join(f"if cfg.kind == '{kind}': {line}" for kind, (line, _) in RETURNS.items())
    write(tmp_path, body, config="lr: 0.25\nkind: dictionary\n")
    more = ("hydra.sweeper.objective=accuracy", "hydra.sweeper.max_failures=null")
    done = app(*STUDY, f"kind={','.join(RETURNS)}", *more)
    assert done.returncode == 0, done.stderr
    for row, (kind, (_, reason)) in zip(table(tmp_path).itertuples(), RETURNS.items()):
        if reason is None:
            assert row.state == "COMPLETE" and row.objective == 0.25 == row.accuracy, kind
            assert kind != "dictionary" or row.n_used == 7
        else:
            assert row.state == "FAILED" and row.reason.startswith(reason), row.reason


def test_repeats_and_confirmation(tmp_path: Path, app: Shell) -> None:
    """On seeds of any name: `score` is lr, and a tenth of the seed's last digit for noise."""
    body = "for step in (1, 2):\n    report(step, score=step * (cfg.lr + cfg.rng % 10 / 10))"
    write(tmp_path, body, config="lr: 3\nrng: 3\n")
    key = "hydra.sweeper.seed_key=rng"
    refused = app(*STUDY, "lr=1,2", "hydra.sweeper.repeats=3")
    assert refused.returncode == 1 and "hydra.sweeper.seed_key" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
    sweep = (*STUDY, "lr=1,2,4", key, "hydra.sweeper.repeats=3", "hydra.sweeper.objective=score")
    done = app(*sweep)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert list(rows.objective) == [pytest.approx(2 * (lr + 0.4)) for lr in (1, 2, 4)]
    assert list(rows.objective_std) == [pytest.approx(0.2)] * 3
    assert set(rows.repeats) == {3} and set(rows.seed) == {3}
    curves = pd.read_csv(tmp_path / "out/curves.csv")
    assert list(curves[curves.trial == 1].score) == [pytest.approx(2.4), pytest.approx(4.8)]
    where = tmp_path / "out/confirm"
    command = [sys.executable, "-m", "fmnist_sweep.confirm", "out", "--top=2", "--seeds=2"]
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    refused = subprocess.run(command, capture_output=True, text=True, **place)
    assert refused.returncode == 1 and "--app" in refused.stderr and not where.exists()
    command += ["--app", f"{sys.executable} app.py"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, **place)
        assert done.returncode == 0, done.stderr
    confirmed = pd.read_csv(tmp_path / "out/confirm.csv")
    assert list(confirmed.name) == ["trial-2", "baseline", "trial-1"]
    assert list(confirmed.seed_1001) == [pytest.approx(2 * (lr + 0.1)) for lr in (4, 3, 2)]
    assert sorted(path.name for path in where.iterdir()) == [
        f"{name}-seeds-1000-1001" for name in ("baseline", "trial-1", "trial-2")
    ]
    assert (tmp_path / "out/plots/confirm.png").exists()


STRUCTURED = """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

@dataclass
class Net:
    width: int = 8
    rate: float = 0.1

@dataclass
class Config:
    net: Net = None
    data: str = MISSING
    path: str = "/root/${data}"

ConfigStore.instance().store("config", Config(net=Net()))
"""


def test_a_structured_config_is_checked_before_anything_starts(tmp_path: Path, app: Shell) -> None:
    write(tmp_path, "return cfg.net.width * len(cfg.data)", STRUCTURED, config=None)
    done = app(*STUDY, "net.width=8,many", "data=a")
    assert done.returncode == 1 and "many" in done.stderr and "Traceback" not in done.stderr
    done = app(*STUDY, "net.wdith=8,16", "data=a")
    assert done.returncode == 1 and "net.wdith" in done.stderr and "net.width" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
    done = app(*STUDY, "net.width=8,16", "data=a,bc")  # which is ??? without the sweep
    assert done.returncode == 0, done.stderr
    assert list(table(tmp_path).objective) == [8, 16, 16, 32]


WILD = """
lr: 0.1
n: 3
seedling: 3
"a/b.c": 1
stamp: ${now:%H-%M-%S-%f}
hydra:
  job:
    chdir: true
  sweep:
    dir: mine
    subdir: ${hydra.job.override_dirname}
  callbacks:
    mine:
      _target_: app_callbacks.Mine
  job_logging:
    version: 1
    handlers:
      file:
        class: logging.FileHandler
        filename: own.log
    root:
      handlers: [file]
      level: INFO
"""
CALLBACKS = """
from pathlib import Path
from hydra.experimental.callback import Callback

class Mine(Callback):
    def on_job_end(self, config, job_return, **_):
        Path("called").touch()
"""
FORKS = """
import logging
logging.getLogger(__name__).info("hello")
print("x" * 100_000)
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
assert os.getcwd() == HydraConfig.get().runtime.output_dir
return cfg.lr + cfg["a/b.c"]
"""


def test_an_app_with_everything_of_its_own(tmp_path: Path, app: Shell) -> None:
    """Its directory and callbacks, chdir, logging, forks, odd keys, a time in a value."""
    write(tmp_path, FORKS, config=WILD)
    (tmp_path / "app_callbacks.py").write_text(CALLBACKS)
    grid = ("-m", "hydra/sweeper=study", "lr=0.1,0.2")
    for _ in range(2):
        done = app(*grid)
        assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout
    rows = pd.read_csv(tmp_path / "mine/sweep.csv")
    assert list(rows.objective) == [pytest.approx(1.1), pytest.approx(1.2)]
    assert "hello" in (tmp_path / "mine/0/own.log").read_text()
    assert (tmp_path / "mine/1/called").exists()


GROUPS = {"db/mysql.yaml": "port: 3306\n", "db/postgres.yaml": "port: 5432\nextra: 1\n"}


def test_groups_and_experiments(tmp_path: Path, app: Shell) -> None:
    config = "defaults:\n  - db: mysql\n  - _self_\n  - experiment: null\nlr: 0.1\n"
    write(tmp_path, "return cfg.db.port + cfg.get('db').get('extra', 0) * cfg.lr", config=config)
    files = {
        **GROUPS,
        "experiment/fast.yaml": "# @package _global_\nlr: 100\n",
        "experiment/slow.yaml": "# @package _global_\nlr: 1\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    done = app(*STUDY, "db=mysql,postgres", "experiment=fast,slow")
    assert done.returncode == 0, done.stderr
    assert list(table(tmp_path).objective) == [3306, 3306, 5532, 5433]
    note = json.loads((tmp_path / "out/3/trial.json").read_text())
    assert note["params"] == {"db": "postgres", "experiment": "slow"}


def test_several_objectives_make_a_front(tmp_path: Path, app: Shell) -> None:
    write(tmp_path, "return cfg.lr, -cfg.lr")
    both = "hydra.sweeper.objective=[score,cost]"
    done = app(*STUDY, "lr=0.1,0.2", both, "hydra.sweeper.direction=[maximize,minimize]")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert list(rows.objective_score) == [0.1, 0.2] and list(rows.objective_cost) == [-0.1, -0.2]


@pytest.mark.torture
def test_the_seed_of_an_app_seeds_its_sampler(tmp_path: Path, app: Shell) -> None:
    write(tmp_path, "return cfg.lr", config="lr: 0.1\nrng: 3\n")

    def rates(name: str, rng: int) -> list[float]:
        search = ("lr=interval(0,1)", f"rng={rng}", "hydra.sweeper.seed_key=rng")
        size = ("hydra.sweeper.n_trials=3", f"hydra.sweep.dir={name}")
        assert app("-m", "hydra/sweeper=study", *search, *size).returncode == 0
        return list(pd.read_csv(tmp_path / name / "sweep.csv").lr)

    assert rates("a", 3)[1:] != rates("b", 4)[1:]


def test_the_wheel_in_a_fresh_place(tmp_path: Path) -> None:
    """Built and unpacked elsewhere, found by its entry points alone."""
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(wheels)]
    done = subprocess.run([*build, "--no-build-isolation", str(ROOT)], capture_output=True)
    if done.returncode:
        done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--no-deps", "-q", "--target", str(site), str(wheel)]
    assert subprocess.run([sys.executable, *install]).returncode == 0
    assert not list(site.rglob("benchmarks")) and not list(site.rglob("tests"))
    home = tmp_path / "elsewhere"
    home.mkdir()
    write(home, "report(1, loss=cfg.lr)")
    done = subprocess.run(
        [sys.executable, "app.py", *STUDY, "lr=0.1,0.2", "hydra.sweeper.objective=loss"],
        cwd=home,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert list(table(home).loss) == [0.1, 0.2]
    config = yaml.safe_load((home / "out/0/.hydra/hydra.yaml").read_text())["hydra"]
    assert config["sweeper"]["_target_"] == "fmnist_sweep.sweep.plugins.StudySweeper"
    environment = json.loads((home / "out/study.json").read_text())
    assert environment["name"]
