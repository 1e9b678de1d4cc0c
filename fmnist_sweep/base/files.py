"""Paths as text: relative ones mean the directory of the command, wherever they are used."""

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit


def absolute(path: str, folder: str | os.PathLike[str] = os.curdir) -> str:
    """A path as text, from `folder` on where it is relative; `~` is the user's home."""
    return str(Path(folder).absolute() / Path(path).expanduser())


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, whatever characters its path has."""
    import sqlalchemy

    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def absolute_url(url: str, folder: str | os.PathLike[str] = os.curdir) -> str:
    """A URL, or a path, whose file is looked for from `folder` on; others as they are."""
    scheme = urlsplit(url).scheme
    if scheme.startswith("sqlite"):
        import sqlalchemy

        try:
            address = sqlalchemy.make_url(url)
        except sqlalchemy.exc.ArgumentError:
            return url
        if not address.database or address.database.startswith((":memory:", "file:")):
            return url
        there = address.set(database=absolute(address.database, folder))
        return there.render_as_string(hide_password=False)
    if scheme == "file" and not url.startswith(("file:/", "file:~")):
        return f"file:{absolute(url.removeprefix('file:'), folder)}"
    is_path = not scheme and url != "databricks"  # which MLflow takes for a server's name
    return absolute(url, folder) if is_path else url


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all: temporary file beside it, fsync, rename.

    The file gets the permissions that the user's umask gives to new files.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    # Not `tempfile`, whose files are their owner's alone: asking for the umask means to set it,
    # which another thread's new files would meet.
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
    """Makes a new folder, `folder` itself or `folder-2`, `folder-3`, ... if it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
