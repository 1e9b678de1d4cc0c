"""Broken input gets a clear error or a right answer: files as others may send them, any override.

FUZZ_EXAMPLES=100000 pytest tests/test_fuzz.py tries as many inputs of each kind, each time others;
without it a few are tried, always the same.
"""

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmnist_sweep import record
from fmnist_sweep.cli import in_a_line, parsed
from fmnist_sweep.compare import reading
from fmnist_sweep.compare.findings import findings
from fmnist_sweep.compare.rows import CompareError
from fmnist_sweep.config import conf_folder, known_keys
from fmnist_sweep.data import idx
from fmnist_sweep.record import Epoch
from fmnist_sweep.report import page, tables
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
edits = st.lists(
    st.tuples(st.integers(0, 10**4), st.integers(0, 40), st.binary(max_size=12)),
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
            except idx.Failure as failure:
                assert "\n" not in str(failure)
                continue
            array = idx.read(path)
            assert array.nbytes == len(one) - 4 - 4 * rank
            assert array.shape[1:] == ((28, 28) if rank == 3 else ())


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
        except ValueError as error:
            assert "history.csv" in str(error) or "codec" in str(error)
            return
        assert all(isinstance(row, Epoch) and isinstance(row.epoch, int) for row in rows)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trials = [sweeps.trial(0.8 + 0.01 * n, params={sweeps.KEY: 0.001 * (n + 1)}) for n in range(4)]
    return sweeps.write(tmp_path_factory.mktemp("fuzz") / "a", trials)


@fuzzed
@given(
    changes=edits,
    name=st.sampled_from(["summary.json", "trial.json", "history.csv", ".hydra/config.yaml"]),
)
def test_run_folders(changes: list[Edit], name: str, sweep: Path) -> None:
    file = sweep / "1" / name
    good = file.read_bytes()
    try:
        file.write_bytes(edited(good, changes))
        check_report(sweep)
    finally:
        file.write_bytes(good)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@fuzzed
@given(
    name=st.sampled_from(["summary.json", "trial.json"]),
    key=st.sampled_from(
        ["state", "reason", "params", "objective", "direction", "val_accuracy", "started", "epochs"]
    ),
    value=values,
)
def test_values_of_run_folders(name: str, key: str, value: Any, sweep: Path) -> None:
    file = sweep / "1" / name
    good = file.read_bytes()
    try:
        file.write_text(json.dumps({**json.loads(good), key: value}))
        check_report(sweep)
    finally:
        file.write_bytes(good)


def check_report(sweep: Path) -> None:
    try:
        found = tables.Sweep(sweep)
        found.update()
        tables.as_csv(found.sweep_table())
        text = page.page(sweep, list(found.runs.values()), {})
    except tables.ReportError as error:
        assert "\n" not in str(error)
        return
    assert text.rstrip().endswith("</html>")


@fuzzed
@given(changes=edits)
def test_tables_from_elsewhere(changes: list[Edit], sweep: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        good, bad = Path(folder, "good.csv"), Path(folder, "bad.csv")
        content = (sweep / "sweep.csv").read_bytes()
        good.write_bytes(content)
        bad.write_bytes(edited(content, changes))
        try:
            findings(reading.read([good, bad], None))
        except CompareError as error:
            assert "\n" not in str(error)


words = st.sampled_from([*known_keys(), "hydra.sweeper", "model", "augment", "experiment", "~seed"])
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
            line = in_a_line(error)
            assert line is not None, repr(error)
