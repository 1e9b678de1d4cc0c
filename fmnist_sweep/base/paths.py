"""Paths as text: relative ones mean the directory of the command, wherever they are used."""

import os
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
