"""A table as a data set: CSV or Parquet, with a column that holds the classes."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fmnist_sweep.base.errors import ConfigError, DataError, first_line
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data.arrays import SUFFIXES
from fmnist_sweep.task.data.dataset import (
    MAX_CLASSES,
    Dataset,
    Part,
    PartName,
    class_names,
    encoded,
    fingerprint,
)

REQUIRED = ("path", "target")


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Read a file, or the files `train`, `val` and `test` of a folder; see `loaders.Loader`."""
    path, target = Path(str(config.path)), str(config.target)
    files = _files(path)
    frames = {part: _read(files[part], target) for part in parts if part in files}
    columns = list(frames["train"].columns)
    classes: tuple[str, ...] = ()
    found: dict[PartName, Part] = {}
    for part, frame in frames.items():
        where = f"{files[part]}: column {target}"
        if list(frame.columns) != columns:
            other = {*columns} ^ {*frame.columns}
            raise DataError(
                f"{files[part]}: has other columns than {files['train'].name}: "
                f"{', '.join(sorted(other)) or 'another order'}"
            )
        labels = frame[target]
        if labels.isna().any():
            raise DataError(f"{where}: is empty in row {_row(labels.isna())}")
        values = labels.to_numpy() if labels.dtype.kind in "iub" else labels.astype(str).to_numpy()
        if part == "train":
            classes = class_names(values, where)
        codes = encoded(values, classes, where)
        found[part] = Part(_checked(frame.drop(columns=target), files[part]), codes)
    arrays: dict[PartName, Part] = {
        part: Part(pd.util.hash_pandas_object(one.inputs, index=False).to_numpy(), one.labels)
        for part, one in found.items()
    }
    return Dataset(
        path.stem,
        str(path),
        classes,
        found,
        has_test="test" in files,
        fingerprint=fingerprint(arrays),
        fit=partial(_fit, config.normalise),
    )


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return when the files were written, and what the encoding depends on."""
    states = [(file, file.stat()) for file in _files(Path(str(config.path))).values()]
    return config.normalise, tuple((f, s.st_mtime_ns, s.st_size) for f, s in states)


def _files(path: Path) -> dict[PartName, Path]:
    """Return the file of each part."""
    if not path.exists():
        raise DataError(f"data.path={path}: No such file or directory")
    if not path.is_dir():
        return {"train": path}
    found: dict[PartName, Path] = {}
    for part, name in SUFFIXES.items():
        for file in (path / f"{name}.csv", path / f"{name}.parquet"):
            if file.exists():
                found[part] = file
    if "train" not in found:
        raise DataError(f"data.path={path}: has no train.csv or train.parquet")
    return found


def _read(file: Path, target: str) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except ImportError:
        raise DataError(
            f"{file}: reading Parquet needs pyarrow: pip install 'fmnist-sweep[parquet]'"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    except Exception as error:  # each reader has its own
        raise DataError(f"{file}: {first_line(error)}") from None
    frame.columns = frame.columns.map(str)
    if target not in frame.columns:
        shown = ", ".join(frame.columns[:10]) + (", ..." if len(frame.columns) > 10 else "")
        raise ConfigError(f"data.target={target}: {file} has no such column; it has {shown}")
    if len(frame) == 0 or len(frame.columns) < 2:
        raise DataError(f"{file}: has no rows, or no column beside {target}")
    return frame


def _checked(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Refuse empty cells, infinite numbers and columns of too many categories."""
    for name in frame.columns:
        column = frame[name]
        empty = column.isna()
        if _is_number(column):
            empty |= ~np.isfinite(column.to_numpy(dtype=float, na_value=np.nan))
        elif (n := column.nunique()) > MAX_CLASSES:
            raise DataError(
                f"{file}: column {name} holds text of {n:,} different values; at most "
                f"{MAX_CLASSES:,} categories are encoded; remove the column"
            )
        if empty.any():
            raise DataError(f"{file}: column {name} is empty, NaN or infinite in row {_row(empty)}")
    return frame


def _is_number(column: "pd.Series[Any]") -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def _row(bad: "pd.Series[Any]") -> int:
    """Return the number of the first such row, counted from 1 below the header."""
    return int(np.argmax(bad.to_numpy())) + 1


def _fit(normalise: str, train: pd.DataFrame) -> Callable[[pd.DataFrame], np.ndarray]:
    """Fit the encoding on the training rows: numbers scaled, categories one-hot."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

    numbers = [name for name in train.columns if _is_number(train[name])]
    others = [name for name in train.columns if name not in numbers]
    scalers = {
        "standardise": StandardScaler(),
        "minmax": MinMaxScaler((-1, 1)),
        "none": "passthrough",
    }
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    steps = [("numbers", scalers[normalise], numbers), ("categories", encoder, others)]
    fitted = ColumnTransformer(steps).fit(train)
    return lambda frame: np.asarray(fitted.transform(frame), dtype=np.float32)
