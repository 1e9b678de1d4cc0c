"""A PostgreSQL server of our own, on loopback, for as long as the tests run."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class Server:
    """A running server."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.data = folder / "data"
        # The server refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        initdb = [binaries / "initdb", "-D", self.data, "-U", "sweep", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, user=self.user, check=True, capture_output=True, cwd=folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = ["-p", str(self.port), "-k", str(self.data), "-c", "listen_addresses=127.0.0.1"]
        self.process = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.data, *options, "-c", "fsync=off"],
            user=self.user,
            cwd=self.data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < until and self.process.poll() is None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stops it at once, as a crash would."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def url(self, database: str) -> str:
        return f"postgresql://sweep@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The storage URL of an empty database."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name).replace("postgresql://", "postgresql+psycopg://")


@contextmanager
def server() -> Iterator[Server]:
    """A server with an empty cluster.

    Raises:
        LookupError: PostgreSQL is not installed.
    """
    binaries = programs()
    if binaries is None:
        raise LookupError("no PostgreSQL on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        running = Server(binaries, Path(folder))
        try:
            yield running
        finally:
            running.stop()  # a polite end would wait for connections still pooled
