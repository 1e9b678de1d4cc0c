"""Pictures and page of a report, the page in a real browser where there is one."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests import sweeps
from tests.conftest import ROOT, Command
from tests.sweeps import trial

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> & \"'$"


def rows() -> list[dict[str, Any]]:
    made = [
        trial(0.8 + k / 100, params={"optimizer.lr": 0.001 * 2**k, "model.width": 64 * (k + 1)},
              epochs=3)
        for k in range(6)
    ]  # fmt: skip
    made.append(trial(0.5, "PRUNED", params={"optimizer.lr": 0.5, "model.width": 64},
                      reason="pruned after epoch 1 of 3", epochs=1))  # fmt: skip
    made.append(trial(None, "FAILED", params={"optimizer.lr": 9.0, "model.width": 64},
                      reason=HOSTILE, epochs=0))  # fmt: skip
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sweeps.write(tmp_path / "multirun" / "a<b>&c", rows())


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    values = json.loads(found[1])
    assert isinstance(values, dict)
    return values


def test_report_writes_everything_and_leaves_the_tables(folder: Path, report: Command) -> None:
    before = {name: (folder / name).read_bytes() for name in ("sweep.csv", "curves.csv")}
    outcome = report(str(folder))
    assert outcome.code == 0, outcome.err
    assert {name: (folder / name).read_bytes() for name in before} == before
    pictures = {path.name for path in (folder / "plots").iterdir()}
    assert {"curves.png", "history.png", "slices.png", "parallel.png", "time.png"} <= pictures
    assert all((folder / "plots" / p).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in pictures)
    data = data_of(folder / "report.html")
    assert [row["trial"] for row in data["runs"]] == [5, 4, 3, 2, 1, 0, 6, 7]
    assert data["best"] == 5 and data["baseline"] == 0
    assert data["curves"][0]["curves"]["5"] == [1, 28.333, 56.667, 85.0]
    assert data["runs"][-1]["reason"] == HOSTILE
    assert list(pd.read_csv(folder / "sweep.csv")["trial"]) == list(range(8))


def test_page_needs_no_network_and_holds_no_markup_of_users(folder: Path, report: Command) -> None:
    assert report(str(folder)).code == 0
    text = (folder / "report.html").read_text()
    plain = text.replace(json.dumps(HOSTILE)[1:-1].replace("<", "\\u003c"), "")
    assert not re.search(r"(src|href)\s*=|url\((?!#)|@import|fetch\(|import\(", plain)
    assert "default-src 'none'" in text and "<img" not in text
    assert text.count("</script>") == 2 and "Sweep a&lt;b&gt;&amp;c" in text


@pytest.mark.parametrize(
    ("candidates", "winner"),
    [([{"name": "trial-4"}], 4), ([{"name": "baseline"}], None), ({"a": 1}, None), ([3], None)],
)
def test_the_confirmed_winner_is_marked(
    candidates: Any, winner: int | None, folder: Path, report: Command
) -> None:
    confirmed = {"candidates": candidates, "test": {"opened_for": 1}}
    (folder / "confirm.json").write_text(json.dumps(confirmed))
    assert report(str(folder)).code == 0
    data = data_of(folder / "report.html")
    assert data["winner"] == winner
    line = data["facts"]["Data"]["Selected on"]
    assert line.endswith("the sweep has opened no test example; confirm has, for selection 1")


# The command of a sweep of which another trial ends, and then the command.
RUNNING = """
import sys, time
from pathlib import Path
from fmnist_sweep.base.locks import LifeLock

folder, hidden = map(Path, sys.argv[1:])
lock = LifeLock(folder / ".worker-1.lock")
while not (folder / "report.html").exists():
    time.sleep(0.05)
time.sleep(0.5)
hidden.rename(folder / "5")
time.sleep(1.5)
assert 'http-equiv="refresh"' in (folder / "report.html").read_text()
lock.close()
"""


def test_a_watched_page_stays_fresh(folder: Path, report: Command) -> None:
    hidden = folder.with_name("hidden")
    (folder / "5").rename(hidden)
    with subprocess.Popen([sys.executable, "-c", RUNNING, str(folder), str(hidden)]) as process:
        while not (folder / ".worker-1.lock").exists():
            time.sleep(0.02)
        outcome = report(str(folder), "--watch", "0.2")
    assert process.returncode == 0
    assert outcome.code == 0, outcome.err
    assert re.search(r"^7 trials: .*\n8 trials: ", outcome.out)
    assert len(data_of(folder / "report.html")["runs"]) == 8
    assert 'http-equiv="refresh"' not in (folder / "report.html").read_text()
    assert (folder / "plots/curves.png").exists()


def test_pictures_of_an_earlier_report_go(folder: Path, report: Command) -> None:
    (folder / "plots").mkdir()
    (folder / "plots/pareto.png").write_bytes(b"of another time")
    (folder / "plots/own.png").write_bytes(b"the user's")
    assert report(str(folder)).code == 0
    assert not (folder / "plots/pareto.png").exists() and (folder / "plots/own.png").exists()


@pytest.mark.parametrize(
    "trials",
    [
        [trial(0.8)],
        [trial(None, "FAILED", reason="x", epochs=0)],
        [trial(0.8, params={}), trial(0.8, params={})],
        [trial(0.8, params={"a$b_{": "x$y"}), trial(0.7, params={"a$b_{": "_z"})],
        [trial(0.5, "PRUNED"), trial(0.4, "PRUNED")],
        [trial(0.7, params={"a": 1}, std=0.1, repeats=3), trial(0.8, params={"a": 2})],
    ],
)
def test_odd_sweeps(tmp_path: Path, report: Command, trials: list[dict[str, Any]]) -> None:
    outcome = report(str(sweeps.write(tmp_path / "odd", trials)))
    assert outcome.code == 0, outcome.err


def test_two_objectives_have_a_front(tmp_path: Path, report: Command) -> None:
    folder = sweeps.write(
        tmp_path / "two",
        [trial(0.7, seconds=1.0), trial(0.8, seconds=3.0), trial(0.6, seconds=2.0)],
        objective=["val_accuracy", "seconds"],
        direction=["maximize", "minimize"],
    )
    assert report(str(folder)).code == 0
    assert data_of(folder / "report.html")["front"] == [0, 1]
    assert (folder / "plots/pareto.png").exists()


def test_paused_trials_have_a_schedule(tmp_path: Path, report: Command) -> None:
    pauses = [{"epochs": 1, "started": 1000.0, "ended": 1001.5}]
    trials = [trial(0.7), trial(0.8, pauses=pauses), trial(0.6, "PAUSED", epochs=1)]
    folder = sweeps.write(tmp_path / "a", trials)
    assert report(str(folder)).code == 0
    schedule = data_of(folder / "report.html")["time"]["schedule"]
    assert [(part[0], *part[3:]) for part in schedule] == [
        (1, 1, "PAUSED"),
        (0, 2, "COMPLETE"),
        (1, 2, "COMPLETE"),
        (2, 1, "PAUSED"),
    ]
    assert (folder / "plots/schedule.png").exists()
    if BROWSER:
        page = browse("--dump-dom", (folder / "report.html").as_uri()).stdout
        assert "<h2>Schedule</h2>" in page and 'data-drawn="' in page


BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
WATCH = "<script>window.wrong = []; onerror = (text) => { wrong.push(String(text)); };</script>"
ACT = f"<script>{(ROOT / 'tests/page_actions.js').read_text()}</script>"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
def test_page_in_a_browser(folder: Path, report: Command, tmp_path: Path) -> None:
    assert report(str(folder)).code == 0
    text = (folder / "report.html").read_text()
    acted = tmp_path / "acted.html"
    acted.write_text(
        text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{ACT}</body>")
    )
    dump = browse("--dump-dom", acted.as_uri()).stdout
    found = re.search(r'<pre id="told">(.*?)</pre>', dump)
    assert found, dump[-2000:]
    told = json.loads(base64.b64decode(found[1]))
    assert told["wrong"] == [] and int(told["drawn"]) < 2000
    assert told["ranked"] == [5, 4, 3, 2, 1, 0, 6, 7]
    assert told["up"] == [0, 1, 2, 3, 4, 5, 6, 7] and told["down"] == told["up"][::-1]
    assert told["filtered"] == [5, 4, 3, 2] and told["failed"] == [7]
    shown = {text: trials for text, (trials, _) in told["filters"].items()}
    assert shown["val_accuracy>81.5"] == [5, 4, 3, 2]
    assert shown["epochs=1"] == shown["PRUNED"] == [6]
    widths = {n: row["params"]["model.width"] for n, row in enumerate(rows())}
    assert shown["width>=128 width!=256"] == [
        n for n in told["ranked"] if widths[n] >= 128 and widths[n] != 256
    ]
    said = {text: line for text, (_, line) in told["filters"].items()}
    assert said["nothing=1"].startswith("no column nothing; there are rank, trial, state, optim")
    assert said["epochs=>1"].startswith("=>: no test; there are = != <")
    assert said["epochs=1"] == "1 of 8 trials"
    assert told["reason"] == HOSTILE and told["title"] == "Sweep a<b>&c"
    assert told["hover"].startswith("Trial 5 (best)") and "epoch 3: 85 %" in told["hover"]
    assert told["hot"] == 1 and told["pictures"] >= 9
    picture = ROOT / "build" / "report.png"
    picture.parent.mkdir(exist_ok=True)
    browse(f"--screenshot={picture}", "--window-size=1280,3600", (folder / "report.html").as_uri())
    assert picture.stat().st_size > 50_000


def browse(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the browser without a window; root may not use its sandbox."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    return subprocess.run(
        [*command, "--hide-scrollbars", *arguments],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
def test_page_of_500_trials_of_50_epochs_is_small_and_quick(
    tmp_path: Path, report: Command
) -> None:
    many = [
        trial(0.8 + k % 97 / 1000, params={"optimizer.lr": 1e-4 * 1.01**k, "model.width": k % 7},
              epochs=50)
        for k in range(500)
    ]  # fmt: skip
    folder = sweeps.write(tmp_path / "many", many)
    for number in range(len(many)):
        (folder / str(number) / "results.png").touch()  # which the command would draw
    assert report(str(folder)).code == 0
    page = folder / "report.html"
    assert page.stat().st_size < 5e6
    drawn = re.search(r'data-drawn="(\d+)"', browse("--dump-dom", page.as_uri()).stdout)
    assert drawn and int(drawn[1]) < 2000
