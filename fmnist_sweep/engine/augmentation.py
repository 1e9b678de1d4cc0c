"""Flips, shifts, rotations, crops and random erasing of whole batches on the device.

torchvision's transforms draw once per batch; here every image has its own random draws. All draws
of an epoch are made before the epoch, from the trial's seed and the epoch's number alone.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from fmnist_sweep.engine.data import DataFormat
from fmnist_sweep.engine.settings import AugmentConfig

# A colour: one value for each channel, or a single one for all channels.
_Colour = tuple[float, ...]


def parts(settings: AugmentConfig) -> tuple[str, ...]:
    """Return the names of the operations that the settings switch on.

    "move" copies each pixel from another pixel; "warp" interpolates between four pixels. "erase"
    may follow either. Trials that share a compiled step have the same operations, but may differ
    in the strength of an operation.
    """
    warps = settings.rotate > 0 or settings.crop < 1
    moves = settings.flip > 0 or settings.shift > 0
    first = ("warp",) if warps else ("move",) if moves else ()
    return (*first, "erase") if settings.erase > 0 else first


def draws(
    settings: AugmentConfig, seed: int, epoch: int, size: int, shape: Sequence[int]
) -> np.ndarray:
    """Draw the augmentation of each image of an epoch.

    Args:
        settings: probabilities and strengths of the operations.
        seed: the trial's seed.
        epoch: number of the epoch.
        size: number of training images.
        shape: (channels, height, width) of an image.

    Returns:
        float32 [size, D], in the order in which the trial sees the images. D is 3 for "move"
        (flip, shift down, shift right), 6 for "warp" (an affine map from coordinates in the new
        image to coordinates in the old image, as `affine_grid` takes it), and 4 more for "erase"
        (top, bottom, left, right of a rectangle).
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, 3]))
    draw_columns = {"move": _draw_moves, "warp": _draw_warps, "erase": _draw_rectangles}
    sides = shape[-2:]
    columns = [draw_columns[part](settings, generator, size, sides) for part in parts(settings)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _draw_moves(
    settings: AugmentConfig, generator: np.random.Generator, size: int, _: Sequence[int]
) -> np.ndarray:
    flipped = generator.random(size) < settings.flip
    return np.column_stack(
        [flipped, generator.integers(-settings.shift, settings.shift + 1, (size, 2))]
    )


def _draw_warps(
    settings: AugmentConfig, generator: np.random.Generator, size: int, sides: Sequence[int]
) -> np.ndarray:
    height, width = sides
    flipped, down, right = _draw_moves(settings, generator, size, sides).T
    angle = np.radians(settings.rotate) * generator.uniform(-1, 1, size)
    scale = generator.uniform(settings.crop, 1, size)
    crop_centre = (1 - scale[:, None]) * generator.uniform(-1, 1, (size, 2))
    mirror = 1 - 2 * flipped
    # From new coordinates to old ones: flip, crop, then shift and rotate about the centre.
    matrix = np.empty((size, 2, 3))
    # Coordinates run from -1 to 1 along either side.
    matrix[:, 0, 0] = scale * np.cos(angle) * mirror
    matrix[:, 0, 1] = -scale * np.sin(angle) * (height / width)
    matrix[:, 1, 0] = scale * np.sin(angle) * mirror * (width / height)
    matrix[:, 1, 1] = scale * np.cos(angle)
    matrix[:, 0, 2] = crop_centre[:, 0] - right * 2 / width
    matrix[:, 1, 2] = crop_centre[:, 1] - down * 2 / height
    return matrix.reshape(size, 6)


def _draw_rectangles(
    settings: AugmentConfig, generator: np.random.Generator, size: int, sides: Sequence[int]
) -> np.ndarray:
    largest = max(1, math.floor(settings.erase_size * min(sides)))
    height, width = generator.integers(1, largest + 1, (2, size))
    # A rectangle without rows erases nothing.
    height = np.where(generator.random(size) < settings.erase, height, 0)
    top, left = (
        np.floor(generator.random(size) * (whole + 1 - side))
        for whole, side in zip(sides, (height, width))
    )
    return np.column_stack([top, top + height, left, left + width])


def augmented(
    images: torch.Tensor, drawn: torch.Tensor, parts: tuple[str, ...], data: DataFormat
) -> torch.Tensor:
    """Return the images augmented according to their random draws.

    Gaps are black and erased rectangles grey.

    Args:
        images: float32 [..., channels, height, width], scaled.
        drawn: float32 [..., D] on the same device; one row of `draws` per image.
        parts: the operations, as the function `parts` returns them.
        data: the format of the images.
    """
    low, high = data.range
    black, grey = data.scaled(low), data.scaled((low + high) / 2)
    flat, rows = images.reshape(-1, *images.shape[-3:]), drawn.reshape(-1, drawn.shape[-1])
    for part in parts:
        if part == "erase":
            flat = _erase(flat, rows[:, -4:], grey)
        elif part == "move":
            flat = _move(flat, rows, black)
        else:
            flat = _warp(flat, rows[:, :6], black)
    return flat.view(images.shape)


def _move(images: torch.Tensor, rows: torch.Tensor, black: _Colour) -> torch.Tensor:
    channels, height, width = images.shape[-3:]
    row, column = (torch.arange(side, device=images.device) for side in (height, width))
    flipped, down, right = rows[:, :3].long().unsqueeze(-1).unbind(1)  # each [n, 1]
    y, x = row - down, torch.where(flipped > 0, width - 1 - column, column) - right
    inside = _within(y, 0, height).unsqueeze(2) & _within(x, 0, width).unsqueeze(1)
    source = y.clamp(0, height - 1).unsqueeze(2) * width + x.clamp(0, width - 1).unsqueeze(1)
    source = source.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, source).view(images.shape)
    return _by_channel(
        lambda planes, value: torch.where(inside.unsqueeze(1), planes, value), moved, black
    )


def _warp(images: torch.Tensor, rows: torch.Tensor, black: _Colour) -> torch.Tensor:
    grid = affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    # grid_sample pads with 0, so that black is moved to 0 and back.
    moved = grid_sample(_by_channel(torch.sub, images, black), grid, align_corners=False)
    return _by_channel(torch.add, moved, black)


def _erase(images: torch.Tensor, rows: torch.Tensor, grey: _Colour) -> torch.Tensor:
    row, column = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    top, bottom, left, right = rows.unsqueeze(-1).unbind(1)
    rectangle = _within(row, top, bottom).unsqueeze(2) & _within(column, left, right).unsqueeze(1)
    return _by_channel(
        lambda planes, value: torch.where(rectangle.unsqueeze(1), value, planes), images, grey
    )


def _by_channel(
    operation: Callable[..., torch.Tensor], images: torch.Tensor, colour: _Colour
) -> torch.Tensor:
    """Apply an operation to each channel of images [n, channels, ...] and its colour."""
    if len(colour) == 1:
        return operation(images, colour[0])
    planes = torch.split(images, 1, dim=1)
    return torch.cat([operation(plane, value) for plane, value in zip(planes, colour)], dim=1)


def _within(
    values: torch.Tensor, start: torch.Tensor | int, end: torch.Tensor | int
) -> torch.Tensor:
    return (values >= start) & (values < end)
