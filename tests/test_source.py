"""The data's source: found, fetched in order, verified, and never quietly replaced."""

import errno
import gzip
import hashlib
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fmnist_sweep import data
from fmnist_sweep.base.errors import DataError
from fmnist_sweep.task.config import DATA_VARIABLE
from fmnist_sweep.task.data import fetch, idx, source
from fmnist_sweep.task.data.source import load, locate

REPOSITORY = Path(__file__).parent.parent
IMAGES, LABELS = idx.SPLITS["train"]
TEST_IMAGES, TEST_LABELS = idx.SPLITS["test"]


def idx_file(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An IDX file's bytes; `shape` is what the header says where that is not the truth."""
    shape = array.shape if shape is None else shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def pictures(n: int) -> np.ndarray:
    return np.arange(n * 784, dtype=np.uint32).astype(np.uint8).reshape(n, 28, 28)


def classes(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8) % 10


SMALL = {
    IMAGES: idx_file(pictures(12)),
    LABELS: idx_file(classes(12)),
    TEST_IMAGES: idx_file(pictures(7)),
    TEST_LABELS: idx_file(classes(7)),
}
SMALL_SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}

# What we use of torchvision, for this process and, by PYTHONPATH, for those that it starts.
FAKE_TORCHVISION = """
from pathlib import Path
from urllib.request import urlopen
class FashionMNIST:
    mirrors = {mirrors!r}
    resources = {resources!r}
    def __init__(self, root, download):
        raw = Path(root, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for name, _ in self.resources:
            with urlopen(self.mirrors[0] + name) as response:
                (raw / name).write_bytes(response.read())
"""

Mirrors = Callable[..., None]


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirrors:
    """Makes torchvision one that downloads from the given addresses."""

    def use(*addresses: str) -> None:
        resources = [(f"{name}.gz", "") for name in SMALL]
        text = FAKE_TORCHVISION.format(mirrors=list(addresses), resources=resources)
        package = tmp_path / "fake" / "torchvision"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "datasets.py").write_text(text)
        module = ModuleType("torchvision.datasets")
        exec(text, module.__dict__)
        monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return use


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrors: Mirrors) -> None:
    """A machine without the data: no network, no package, no apt, no variable."""
    for variable in (DATA_VARIABLE, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(fetch, "DEBIAN_FOLDER", tmp_path / "absent")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        mirrors(f"http://127.0.0.1:{taken.getsockname()[1]}/")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes SMALL the data set that is published."""
    for name, digest in SMALL_SHA256.items():
        monkeypatch.setitem(idx.SHA256, name, digest)


@pytest.fixture
def raw(tmp_path: Path, published: None) -> Path:
    """`<root>/FashionMNIST/raw` with the four good files."""
    folder = tmp_path / "data" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in SMALL.items():
        (folder / name).write_bytes(content)
    return folder


def pack(folder: Path) -> Path:
    """The four files as their publisher has them, compressed."""
    folder.mkdir(parents=True)
    for name, content in SMALL.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the four good files and nothing else."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} == SMALL


def refusal(root: Path | None, verify: bool = True, **more: tuple[str, ...]) -> str:
    with pytest.raises(DataError) as caught:
        locate(root, verify=verify, **more)
    return str(caught.value)


# What is there


def test_good_files_are_used_as_they_are(raw: Path, tmp_path: Path) -> None:
    raw.chmod(0o555)  # stops everybody but root; the times below tell of root too
    before = raw.stat().st_mtime_ns
    files = locate(tmp_path / "data")
    assert files == source.Files(raw, str(tmp_path / "data"))
    assert raw.stat().st_mtime_ns == before
    raw.chmod(0o755)

    images, labels = load(files, "test")
    assert images.dtype == labels.dtype == np.uint8
    assert np.array_equal(images, pictures(7)) and np.array_equal(labels, classes(7))


def test_the_real_files_verify_and_one_changed_byte_does_not(
    data_root: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data_root, copied)
    images, labels = load(locate(copied), "train")
    assert images.shape == (60_000, 28, 28)
    assert np.bincount(labels).tolist() == [6_000] * 10

    path = copied / "FashionMNIST" / "raw" / IMAGES
    with open(path, "r+b") as file:
        file.seek(30_000_000)
        (byte,) = file.read(1)
        file.seek(30_000_000)
        file.write(bytes([byte ^ 1]))
    said = refusal(copied)
    assert said.startswith(f"{path}: is altered: its SHA-256 differs")
    assert "delete it" in said and "data.verify=false" in said
    locate(copied, verify=False)
    locate(copied, splits=("test",))


def test_the_variable_is_a_default(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    assert locate().folder == raw
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "elsewhere"))
    assert locate(tmp_path / "data").folder == raw
    assert not (tmp_path / "elsewhere").exists()


def test_only_the_asked_split_is_opened(raw: Path, tmp_path: Path) -> None:
    (raw / TEST_IMAGES).unlink()
    (raw / TEST_LABELS).write_bytes(b"damaged")
    files = locate(tmp_path / "data", splits=("train",))
    assert load(files, "train")[0].shape == (12, 28, 28)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (SMALL[IMAGES][:5000], "is truncated: 5,000 bytes, expected 9,424"),
        (SMALL[IMAGES] + b"0", "is too long: 9,425 bytes, expected 9,424"),
        (SMALL[IMAGES][:-1] + b"?", "is altered"),
        (SMALL[TEST_IMAGES], f"holds the content of {TEST_IMAGES}"),
        (SMALL[LABELS], f"holds the content of {LABELS}"),
        (b"", "is truncated: 0 bytes are too few for a header"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named_and_left_alone(
    content: bytes, complaint: str, packed: bool, raw: Path, tmp_path: Path
) -> None:
    path = raw / IMAGES
    path.unlink()
    if packed:
        path, content = raw / f"{IMAGES}.gz", gzip.compress(content)
    path.write_bytes(content)
    pack(fetch.DEBIAN_FOLDER)  # a good copy at hand is no licence to replace
    said = refusal(tmp_path / "data")
    assert said.startswith(f"{path}: {complaint}") and "delete it" in said
    assert path.read_bytes() == content and len(list(raw.iterdir())) == 4


def test_compressed_files_are_decompressed_beside_themselves(
    tmp_path: Path, published: None
) -> None:
    raw = pack(tmp_path / "data" / "FashionMNIST" / "raw")
    assert locate(tmp_path / "data").origin == str(tmp_path / "data")
    assert {path.name for path in raw.iterdir()} == {*SMALL, *(f"{name}.gz" for name in SMALL)}
    assert (raw / IMAGES).read_bytes() == SMALL[IMAGES]


@pytest.mark.parametrize("damage", [b"not gzip", gzip.compress(SMALL[IMAGES])[:-9]])
def test_damaged_archive(damage: bytes, tmp_path: Path, published: None) -> None:
    raw = pack(tmp_path / "data" / "FashionMNIST" / "raw")
    (raw / f"{IMAGES}.gz").write_bytes(damage)
    assert f"{IMAGES}.gz: is damaged: " in refusal(tmp_path / "data")
    assert len(list(raw.iterdir())) == 4


def test_gzip_bomb(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LARGEST", 2**20)
    written = 0
    replace = os.replace

    def watch(old: Path, new: Path) -> None:
        nonlocal written
        written += 1
        replace(old, new)

    monkeypatch.setattr(os, "replace", watch)
    (raw / IMAGES).unlink()
    (raw / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(8 * 2**20)))
    assert "unpacks to more than 1,048,576 bytes" in refusal(tmp_path / "data", verify=False)
    assert len(list(raw.iterdir())) == 4 and not written


# Other data: data.verify=false


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            IMAGES,
            idx_file(pictures(2), (2**32 - 1, 28, 28)),
            "is truncated: 1,584 bytes, expected 3,367",
        ),
        (
            IMAGES,
            idx_file(pictures(2), (2, 2**32 - 1, 28)),
            "holds images of 4294967295 x 28 pixels",
        ),
        (IMAGES, idx_file(pictures(1), (1, 14, 56)), "holds images of 14 x 56 pixels, not 28 x 28"),
        (IMAGES, idx_file(pictures(0)), "is empty"),
        (IMAGES, b"\0\0\x08\x03\0\0", "is truncated: 6 bytes are too few for a header"),
        (IMAGES, idx_file(classes(50)), "is not an IDX file of bytes in 3 dimensions"),
        (IMAGES, b"\0\0\x0d\x03" + SMALL[IMAGES][4:], "is not an IDX file of bytes"),
        (LABELS, idx_file(np.full(12, 10, np.uint8)), "holds label 10; labels must be 0 to 9"),
        (LABELS, idx_file(classes(11)), f"has 11 labels, {IMAGES} has 12 images"),
        (LABELS, idx_file(pictures(1)), "is not an IDX file of bytes in 1 dimension;"),
    ],
)
def test_a_header_is_not_believed(
    name: str, content: bytes, complaint: str, raw: Path, tmp_path: Path
) -> None:
    (raw / name).write_bytes(content)
    said = refusal(tmp_path / "data", verify=False)
    assert said.startswith(f"{raw / name}: {complaint}") and "verify" not in said


@pytest.mark.parametrize("verify", [True, False])
def test_what_has_no_end_is_not_read(verify: bool, raw: Path, tmp_path: Path) -> None:
    os.truncate(raw / IMAGES, idx.LARGEST + 1)
    assert "is too long: 67,108,865 bytes" in refusal(tmp_path / "data", verify)
    (raw / IMAGES).unlink()
    os.mkfifo(raw / IMAGES)
    assert "is not a regular file" in refusal(tmp_path / "data", verify)


def test_files_that_change_after_they_were_found(raw: Path, tmp_path: Path) -> None:
    files = locate(tmp_path / "data")
    (raw / IMAGES).write_bytes(SMALL[IMAGES][:-1])
    with pytest.raises(DataError, match="is truncated"):
        load(files, "train")
    (raw / IMAGES).unlink()
    with pytest.raises(DataError, match="No such file"):
        load(files, "train")


def test_other_data_is_taken_but_never_completed_with_fashion_mnist(
    raw: Path, tmp_path: Path
) -> None:
    pack(fetch.DEBIAN_FOLDER)
    (raw / IMAGES).write_bytes(idx_file(pictures(3)))
    (raw / LABELS).write_bytes(idx_file(classes(3)))
    assert len(load(locate(tmp_path / "data", verify=False), "train")[1]) == 3
    for name in (TEST_LABELS, LABELS):
        (raw / name).unlink()
        said = refusal(tmp_path / "data", verify=False)
        assert "is not Fashion-MNIST's own" in said and "is missing beside it" in said
        assert not (raw / name).exists()


# Where it is fetched


def test_a_missing_file_is_fetched_beside_genuine_ones(raw: Path, tmp_path: Path) -> None:
    pack(fetch.DEBIAN_FOLDER)
    kept = (raw / IMAGES).stat().st_ino
    (raw / LABELS).unlink()
    assert locate(tmp_path / "data").origin == "Debian package dataset-fashion-mnist"
    assert is_complete(raw) and (raw / IMAGES).stat().st_ino == kept


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a mirror that has good files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = pack(tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """An apt-get that has the package once its lists are in a folder of our own; its log."""
    package = pack(tmp_path / "package")
    log = tmp_path / "apt.log"
    unpacked = f'"$3"{fetch.DEBIAN_FOLDER}'
    scripts = {
        "apt-get": f"""echo "$@" >> {log}
            case "$*" in
                *Lists=/*update) exit 0;;
                *Lists=/*download*) : > package.deb;;
                *) echo "W: noise" >&2; echo "E: Unable to locate package" >&2; exit 100;;
            esac""",
        "dpkg-deb": f"/bin/mkdir -p {unpacked} && /bin/cp {package}/* {unpacked}",
    }
    for name, script in scripts.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return log


def test_sources_are_tried_in_order_and_logged(
    tmp_path: Path,
    published: None,
    server: str,
    mirrors: Mirrors,
    apt: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    def lines_of(name: str) -> list[str]:
        caplog.clear()
        files = locate(tmp_path / name)
        assert is_complete(files.folder)
        assert files.origin in caplog.messages[-1]
        assert caplog.messages[0].endswith(f"no {IMAGES} in FashionMNIST/raw; fetching")
        return [line.split(":")[1].strip() for line in caplog.messages[1:]]

    package, torchvision = "Debian package dataset-fashion-mnist", "torchvision download"
    assert lines_of("a") == [package, torchvision, "apt-get download dataset-fashion-mnist"]
    tried = [line.split()[-2:] for line in apt.read_text().splitlines()]
    assert [words[-1] for words in tried] == [
        fetch.DEBIAN_PACKAGE,
        "update",
        fetch.DEBIAN_PACKAGE,
    ]
    mirrors("http://127.0.0.1:1/", server)
    assert lines_of("b") == [package, torchvision]
    pack(fetch.DEBIAN_FOLDER)
    assert lines_of("c") == [package]
    locate(tmp_path / "c")
    assert len(caplog.messages) == 2  # found: nothing to tell


def test_a_source_with_damaged_files_is_passed_over(
    tmp_path: Path, published: None, server: str, mirrors: Mirrors, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mirrors(server)
    (pack(fetch.DEBIAN_FOLDER) / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(SMALL[LABELS]))
    assert locate(tmp_path / "data").origin == "torchvision download"
    assert f"{TEST_LABELS}.gz holds the content of {LABELS}" in caplog.text


def test_everything_failed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    start = time.monotonic()
    said = refusal(root)
    assert time.monotonic() - start < 5
    lines = said.splitlines()
    assert len(lines) <= 8
    assert lines[0] == "Fashion-MNIST was not found. Tried:"
    assert lines[1] == f"  {root}: no {IMAGES} in FashionMNIST/raw"
    assert lines[2] == "  Debian package dataset-fashion-mnist: not installed"
    assert lines[3].startswith("  torchvision download: 127.0.0.1: ") and "refused" in lines[3]
    assert lines[4].endswith("dataset-fashion-mnist: not a Debian or Ubuntu system")
    ways_out = " ".join(lines[5:])
    for way in (str(root / "FashionMNIST/raw"), DATA_VARIABLE, "install Debian's", "network"):
        assert way in ways_out
    assert not list((root / "FashionMNIST" / "raw").iterdir())


def test_apt_without_lists_says_so(tmp_path: Path, apt: Path) -> None:
    script = tmp_path / "bin" / "apt-get"
    script.write_text(
        script.read_text().replace("update) exit 0", "update) echo offline >&2; exit 1")
    )
    failure = refusal(tmp_path / "data").splitlines()[4]
    assert failure.endswith(
        "Unable to locate package; needs `apt-get update`, which failed: offline"
    )


@pytest.mark.parametrize("answers", [False, True])
def test_a_silent_network_is_soon_given_up(
    answers: bool, tmp_path: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that takes connections and says nothing, or nothing after the first words."""
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)

    def greet(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
                if request.startswith(b"GET"):
                    connection.recv(1)  # until the other side hangs up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if answers:
            host = threading.Thread(target=greet, args=(listener,))
            host.start()
        mirrors(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        start = time.monotonic()
        assert "timed out" in refusal(tmp_path / "data").splitlines()[3]
        assert time.monotonic() - start < 5
        if answers:
            host.join()


def test_a_download_without_end_is_ended(
    tmp_path: Path, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.3)
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    assert "no end after 0.3 s" in refusal(tmp_path / "data")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let it go on")
def test_a_download_ends_with_whoever_wanted_it(tmp_path: Path) -> None:
    program = f"""
import sys
from fmnist_sweep.task.data import fetch
script = "echo $$ > {tmp_path}/pid.new && mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 60"
fetch.run_silently(["/bin/sh", "-c", script])
"""
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as process:
        while not (tmp_path / "pid").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    child = Path("/proc", (tmp_path / "pid").read_text().strip())
    deadline = time.monotonic() + 5
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)


def test_processes_that_fetch_at_once_do_no_harm(tmp_path: Path) -> None:
    program = """
import json, os, sys, time
from pathlib import Path
from fmnist_sweep.task.data import fetch, idx, source
idx.SHA256.update(json.loads(sys.argv[1]))
fetch.DEBIAN_FOLDER = Path(sys.argv[2])
replace = os.replace
def slow(old, new):
    time.sleep(0.2)  # so that all of them meet a half laid set
    replace(old, new)
os.replace = slow
files = source.locate(sys.argv[3], verify=sys.argv[4] == "verify")
assert len(source.load(files, "train")[1]) == 12
"""
    root = tmp_path / "data"
    folder = root / "FashionMNIST" / "raw"
    arguments = [json.dumps(SMALL_SHA256), str(pack(tmp_path / "package")), str(root)]

    def start(mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", program, *arguments, mode]
        return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)

    processes = [start("verify"), start("verify")]
    while not (folder / IMAGES).exists() and processes[0].poll() is None:
        time.sleep(0.01)
    processes += [start("verify"), start("no")]
    for process in processes:
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    assert is_complete(folder)


def test_a_root_that_cannot_be_written(tmp_path: Path, published: None) -> None:
    pack(fetch.DEBIAN_FOLDER)
    (tmp_path / "file").touch()
    said = refusal(tmp_path / "file" / "data")
    assert said.startswith(f"data.root={tmp_path}/file/data: cannot be used: Not a directory: ")


def test_a_full_disk(tmp_path: Path, published: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pack(fetch.DEBIAN_FOLDER)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    said = refusal(None)
    assert said.startswith(f"{DATA_VARIABLE}={tmp_path}/data: cannot be used: No space left")
    assert not list((tmp_path / "data/FashionMNIST/raw").iterdir())


# The command


def test_command_tells_where_the_data_is(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "data")
    data.main(["--root", root])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(raw / name) for name in SMALL]
    assert lines[0].endswith("9,424 bytes  sha256 ok")
    assert last == f"Fashion-MNIST from {root}: verified"

    (raw / LABELS).write_bytes(idx_file(classes(12)[::-1]))
    with pytest.raises(SystemExit) as stop:
        data.main(["--root", root])
    assert f"{raw / LABELS}: is altered" in str(stop.value.code)
    data.main(["--root", root, "--no-verify"])
    assert capsys.readouterr().out.endswith("not verified\n")


def test_command_as_a_process(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in SMALL.items():
        (raw / name).write_bytes(content)
    command = [sys.executable, "-W", "error", "-m", "fmnist_sweep.data"]
    command += ["--root", str(tmp_path / "data")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and f"{IMAGES}: is altered" in done.stderr
    done = subprocess.run([*command, "--no-verify"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "program",
    [
        "from fmnist_sweep.task.data import source; import sys; assert not sys.modules.keys() & "
        "{'torch', 'torchvision', 'matplotlib', 'optuna', 'hydra', 'omegaconf'}",
        # What FAKE_TORCHVISION stands for.
        "from torchvision.datasets import FashionMNIST as f;"
        "from fmnist_sweep.task.data import idx;"
        "assert all(m.startswith('http') and m.endswith('/') for m in f.mirrors);"
        "assert [n for n, _ in f.resources] == [f'{n}.gz' for n in idx.SHA256]",
    ],
)
def test_imports(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY)
    assert done.returncode == 0
