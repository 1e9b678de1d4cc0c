"""Absolute paths and URLs, atomic writes and unique directories."""

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

CACHE_VARIABLE = "FMNIST_SWEEP_CACHE"


def cache_folder() -> Path:
    """Return the folder for what can be made again: `FMNIST_SWEEP_CACHE`, else the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fmnist_sweep"


def absolute(path: str, folder: str | os.PathLike[str] = os.curdir) -> str:
    """Return a path as absolute text.

    Args:
        path: a path; a leading `~` means the user's home.
        folder: the directory that a relative path starts from.
    """
    return str(Path(folder).absolute() / Path(path).expanduser())


def absolute_url(url: str, folder: str | os.PathLike[str] = os.curdir) -> str:
    """Return a path, or the URL of a file, made absolute; return any other URL unchanged.

    Args:
        url: a path, an `sqlite:` or `file:` URL, or the URL of a server.
        folder: the directory that a relative path starts from.
    """
    scheme = urlsplit(url).scheme
    if scheme.startswith("sqlite"):
        import sqlalchemy

        try:
            address = sqlalchemy.make_url(url)
        except sqlalchemy.exc.ArgumentError:
            return url
        if not address.database or address.database.startswith((":memory:", "file:")):
            return url
        address = address.set(database=absolute(address.database, folder))
        return address.render_as_string(hide_password=False)
    if scheme == "file" and not url.startswith(("file:/", "file:~")):
        return f"file:{absolute(url.removeprefix('file:'), folder)}"
    is_path = not scheme and url != "databricks"  # a server's name to MLflow
    return absolute(url, folder) if is_path else url


def sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of an SQLite file, special characters in its path escaped."""
    import sqlalchemy

    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: write a temporary file beside it, fsync, rename.

    The file gets the permissions that the user's umask gives to new files.

    Args:
        path: the file to write or replace; its folder exists.
        content: the file's bytes, or text to encode as UTF-8.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    # `tempfile` makes files that only their owner may read. Correcting that needs the umask, which
    # can only be read by setting it, and files of other threads would get the wrong permissions.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def make_unique_dir(folder: Path) -> Path:
    """Make a new folder and return its path: `folder`, or `folder-2`, `folder-3`, ... if it exists.

    The parent folders are made too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
