"""Broken input gets a clear error or a right answer: files as others may send them, any override.

FUZZ_EXAMPLES=100000 pytest tests/test_fuzz.py tries as many inputs of each kind, each time others;
without it a few are tried, always the same.
"""

import io
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fmnist_sweep.base.errors import Error
from fmnist_sweep.base.schema import known_keys
from fmnist_sweep.results import page, ranking, record, tables
from fmnist_sweep.results.compare import reading, showing
from fmnist_sweep.results.compare.findings import findings
from fmnist_sweep.results.compare.sweep_table import CompareError
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.task.cli import _explain, parsed
from fmnist_sweep.task.config import Config, ConfigError, conf_folder
from fmnist_sweep.task.confirm.candidates import candidates, fresh_seeds
from fmnist_sweep.task.data import idx
from tests import sweeps

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Edit = tuple[int, int, bytes]
pieces = st.binary(max_size=12) | st.builds(
    bytes.__mul__,
    st.sampled_from([b'"', b"[", b"{", b'[{"a":', b"9", b"\n", b"x", b"0,"]),
    st.sampled_from([2, 400, 5000, 10**5, 2 * 10**5]),
)
edits = st.lists(
    st.tuples(st.integers(0, 10**4), st.integers(0, 40), pieces),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: list[Edit]) -> bytes:
    """Pieces of a file replaced by others, also by nothing."""
    for place, length, new in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + length :]
    return content


@fuzzed
@given(
    header=st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 30)] * 3),
    body=st.binary(max_size=2000),
    changes=edits,
    name=st.sampled_from(sorted(idx.SHA256)),
)
def test_idx_files(
    header: tuple[int, int, int], body: bytes, changes: list[Edit], name: str
) -> None:
    rank = 3 if "images" in name else 1
    content = bytes([0, 0, 8, rank]) + struct.pack(f">{rank}I", *header[:rank]) + body
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate((content, edited(content, changes))):
            path = Path(folder, str(number), name)
            path.parent.mkdir()
            path.write_bytes(one)
            try:
                idx.inspect(path, verify=False)
            except idx.SourceError as failure:
                assert "\n" not in str(failure)
                continue
            array = idx.read(path)
            assert array.nbytes == len(one) - 4 - 4 * rank
            assert array.shape[1:] == ((28, 28) if rank == 3 else ())


NOWHERE = Console(file=io.StringIO())
HISTORY = [Epoch(1, 1e-3, 0.5, 0.75, 0.5, 0.75, 1.5), Epoch(2, 1e-4, 0.25, 0.875, 0.5, 0.75, 1.5)]


@fuzzed
@given(changes=edits)
def test_histories(changes: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record.write_history(folder, HISTORY)
        file = folder / "history.csv"
        file.write_bytes(edited(file.read_bytes(), changes))
        try:
            rows = record.read_history(folder)
        except record.RecordError as error:
            assert "history.csv" in str(error) and "\n" not in str(error)
            return
        assert all(isinstance(row[next(iter(row))], int) for row in rows)


SETTINGS = {
    ".hydra/config.yaml": ["data", "data.classes", "data.val_size", "data.validation", "model", ""],
    ".hydra/hydra.yaml": ["hydra.runtime", "hydra.runtime.choices.optimizer", ""],
    "environment.json": ["versions", "device", "processor", "git_dirty", ""],
    "../multirun.yaml": ["hydra.sweeper", "hydra.overrides.task", sweeps.KEY, "optimizer", ""],
    "../confirm.json": ["sentences", "test.accuracy", "test.accuracy.mean", "test", ""],
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trials = [sweeps.trial(0.8 + 0.01 * n, params={sweeps.KEY: 0.001 * (n + 1)}) for n in range(4)]
    folder = sweeps.write(tmp_path_factory.mktemp("fuzz") / "a", trials)
    chosen = {"hydra": {"runtime": {"choices": {"optimizer": "adam"}}}}
    sweeper = {"hydra": {"sweeper": {"sampler": {"_target_": "a.b"}}, "overrides": {"task": []}}}
    confirmed = {"sentences": ["a"], "test": {"accuracy": {"mean": 0.5, "std": 0.1, "n": 2}}}
    (folder / "0/.hydra/hydra.yaml").write_text(json.dumps(chosen))
    (folder / "multirun.yaml").write_text(json.dumps({**sweeps.CONFIG, **sweeper}))
    (folder / "confirm.json").write_text(json.dumps(confirmed))
    return folder


@fuzzed
@given(
    changes=edits,
    name=st.sampled_from(["summary.json", "trial.json", "history.csv", *SETTINGS]),
)
@example(changes=[(0, 0, b"(")], name=".hydra/config.yaml")
@example(changes=[(408, 1, b"9" * 400)], name="summary.json")
def test_run_folders(changes: list[Edit], name: str, sweep: Path) -> None:
    file = sweep / "0" / name
    good = file.read_bytes()
    try:
        file.write_bytes(edited(good, changes))
        check(sweep)
    finally:
        file.write_bytes(good)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**12, -(2**63), 2**63, 10**30, 10**400])
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


NOTES = ["params", "objective", "direction", "default"]
FIGURES = ["state", "reason", "val_accuracy", "val_accuracy_std", "train_size", "seed", "repeats"]
TIMES = ["started", "seconds", "epochs"]


@fuzzed
@given(
    where=st.sampled_from(
        [("trial.json", key) for key in NOTES]
        + [("summary.json", key) for key in FIGURES + TIMES]
        + [(name, key) for name, keys in SETTINGS.items() for key in keys]
    ),
    value=values,
)
@example(where=("trial.json", "params"), value={"\n": []})
def test_values_of_run_folders(where: tuple[str, str], value: Any, sweep: Path) -> None:
    file = sweep / "0" / where[0]
    good = file.read_bytes()
    try:
        changed = replaced(yaml.safe_load(good), where[1].split(".") if where[1] else [], value)
        file.write_text(json.dumps(changed))
        check(sweep)
    finally:
        file.write_bytes(good)


def replaced(inside: Any, key: list[str], value: Any) -> Any:
    """Nested mappings with another value at a key."""
    return {**inside, key[0]: replaced(inside.get(key[0]), key[1:], value)} if key else value


@fuzzed
@given(lines=values, changes=edits)
def test_overrides_of_stock_sweepers(lines: Any, changes: list[Edit], sweep: Path) -> None:
    note, file = sweep / "1/trial.json", sweep / "1/.hydra/overrides.yaml"
    good = note.read_bytes()
    note.unlink()
    try:
        check(sweep)  # it is not there either
        for content in (json.dumps(lines).encode(), edited(b"- seed=1\n- +a=1e-4\n", changes)):
            file.write_bytes(content)
            check(sweep)
    finally:
        file.unlink(missing_ok=True)
        note.write_bytes(good)


def check(sweep: Path) -> None:
    """Every command that reads the folder does, or says in a line why not."""
    try:
        found = tables.Sweep(sweep)
        found.update()
        tables.as_csv(found.sweep_table())
        tables.as_csv(found.curves_table())
        runs = list(found.runs.values())
        text = page.page(sweep, runs, {})
        ranking.show(runs, NOWHERE)
    except tables.ReportError as error:
        assert "\n" not in str(error)
        return
    assert text.rstrip().endswith("</html>")
    try:
        showing.show(findings(reading.read([sweep, sweep / "sweep.csv"], None)), NOWHERE)
    except CompareError as error:
        assert "\n" not in str(error)
    try:
        seeds = fresh_seeds(runs, 2)
        [one.config(seeds) for one in candidates(sweep, runs, 2, "val_accuracy")]
    except ConfigError:  # a line for each wrong key
        pass
    except record.RecordError as error:
        assert "\n" not in str(error)


@fuzzed
@given(changes=edits)
def test_tables_from_elsewhere(changes: list[Edit], sweep: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        good, bad = Path(folder, "good.csv"), Path(folder, "bad.csv")
        content = (sweep / "sweep.csv").read_bytes()
        good.write_bytes(content)
        bad.write_bytes(edited(content, changes))
        try:
            showing.show(findings(reading.read([good, bad], None)), NOWHERE)
        except CompareError as error:
            assert "\n" not in str(error)


words = st.sampled_from(
    [*known_keys(Config), "hydra.sweeper", "model", "augment", "experiment", "~seed"]
)
texts = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Z"]), max_size=12)
literals = st.sampled_from(["null", "-1", "1e999", "nan", "[]", "{}", "[1", "${seed}", "???", "''"])


@settings(fuzzed, max_examples=max(20, EXAMPLES // 20))
@given(key=words | texts, sign=st.sampled_from(["=", "", "==", "@a="]), value=literals | texts)
def test_overrides(key: str, sign: str, value: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_folder()):
        try:
            parsed(compose("config", [f"{key}{sign}{value}"]))
        except Exception as error:
            line = str(error) if isinstance(error, Error) else _explain(error)
            assert line is not None, repr(error)
