"""A folder of PNG and JPEG images as a data set, with a folder for each class.

The images are decoded once; the pixels are kept in the user's cache.
"""

import hashlib
import io
import warnings
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fmnist_sweep.base.errors import DataError, first_line
from fmnist_sweep.base.files import cache_folder, write_atomically
from fmnist_sweep.base.processes import cores
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data.arrays import SUFFIXES, check_memory
from fmnist_sweep.task.data.dataset import Dataset, PartName, from_arrays

REQUIRED = ("path",)
ENDINGS = (".png", ".jpg", ".jpeg")
# Pillow's modes of one channel and of three; others have transparency or more than 8 bits.
_GREY, _COLOUR = ("L", "1"), ("RGB", "P")


class _File(NamedTuple):
    path: Path
    label: str
    size: int
    modified: int


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Read the parts from `train`, `val` and `test` in the folder, or all from the folder."""
    path = Path(str(config.path))
    folders = _folders(path)
    arrays: dict[str, np.ndarray] = {}
    where: dict[str, str] = {}
    for part in parts:
        name = SUFFIXES[part]
        if part in folders:
            files = _list(folders[part])
            arrays[f"x_{name}"] = _pixels(folders[part], files)
            arrays[f"y_{name}"] = np.array([file.label for file in files])
            where |= {f"{letter}_{name}": str(folders[part]) for letter in "xy"}
    return from_arrays(path.name, str(path), arrays, where, "test" in folders)


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return the files with their sizes and times; see `loaders.Loader`."""
    folders = _folders(Path(str(config.path)))
    return tuple(tuple(_list(folders[part])) for part in parts if part in folders)


def _folders(path: Path) -> dict[PartName, Path]:
    if not path.is_dir():
        raise DataError(f"data.path={path}: is no folder")
    if not (path / "train").is_dir():
        return {"train": path}
    return {part: path / name for part, name in SUFFIXES.items() if (path / name).is_dir()}


def _list(folder: Path) -> list[_File]:
    files = []
    for label in sorted(child for child in folder.iterdir() if child.is_dir()):
        for path in sorted(label.iterdir()):
            if path.suffix.lower() in ENDINGS:
                state = path.stat()
                files.append(_File(path, label.name, state.st_size, state.st_mtime_ns))
    if not files:
        raise DataError(f"{folder}: has no folder of PNG or JPEG images for each class")
    return files


def _pixels(folder: Path, files: Sequence[_File]) -> np.ndarray:
    """Return the images, uint8 [n, channels, height, width], from the cache if they are in it."""
    key = hashlib.sha256(repr((str(folder.resolve()), files)).encode()).hexdigest()[:32]
    kept = cache_folder() / "images" / f"{key}.npy"
    try:
        return np.load(kept, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        pass
    decoded = _decode(files)
    content = io.BytesIO()
    np.save(content, decoded, allow_pickle=False)
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(kept, content.getvalue())
    except OSError:  # decoded anew by the next process
        pass
    return decoded


def _decode(files: Sequence[_File]) -> np.ndarray:
    with warnings.catch_warnings():
        # Images of more than 89 million pixels: Pillow warns, and refuses those of twice as many.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with ThreadPoolExecutor(cores()) as pool:
            heads = list(pool.map(_head, files))
            (first, mode), *_ = heads
            for file, (size, _) in zip(files, heads):
                if size != first:
                    raise DataError(
                        f"{file.path}: has {size[0]} x {size[1]} pixels, {files[0].path} has "
                        f"{first[0]} x {first[1]}; all images must have the same size"
                    )
            mode = "L" if all(mode == "L" for _, mode in heads) else "RGB"
            width, height = first
            check_memory(len(files) * width * height * len(mode))
            decoded = np.empty((len(files), height, width, len(mode)), np.uint8)

            def fill(index: int) -> None:
                decoded[index] = _read(files[index].path, mode)

            list(pool.map(fill, range(len(files))))
    return np.ascontiguousarray(decoded.transpose(0, 3, 1, 2))


def _head(file: _File) -> tuple[tuple[int, int], str]:
    """Return an image's width and height and its mode, L or RGB, without decoding it."""
    try:
        with Image.open(file.path, formats=("PNG", "JPEG")) as image:
            if "transparency" in image.info or image.mode not in (*_GREY, *_COLOUR):
                raise DataError(
                    f"{file.path}: is of mode {image.mode}; images must be grey or RGB with 8 bits "
                    "and without transparency"
                )
            return image.size, "L" if image.mode in _GREY else "RGB"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"{file.path}: {first_line(error)}") from None


def _read(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: {first_line(error)}") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]
