"""Flips, shifts, rotations, crops and random erasing of whole batches on the device.

torchvision's transforms draw once per batch; here every image has its own random draws. All draws
of an epoch are made before the epoch, from the trial's seed and the epoch's number alone.
"""

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from fmnist_sweep.engine.settings import AugmentConfig

SIDE = 28
BACKGROUND, ERASED = -1.0, 0.0


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


def draws(settings: AugmentConfig, seed: int, epoch: int, size: int) -> np.ndarray:
    """Draw the augmentation of each image of an epoch.

    Args:
        settings: probabilities and strengths of the operations.
        seed: the trial's seed.
        epoch: number of the epoch.
        size: number of training images.

    Returns:
        float32 [size, D], in the order in which the trial sees the images. D is 3 for "move"
        (flip, shift down, shift right), 6 for "warp" (an affine map from coordinates in the new
        image to coordinates in the old image, as `affine_grid` takes it), and 4 more for "erase"
        (top, bottom, left, right of a rectangle).
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, 3]))
    draw_columns = {"move": _draw_moves, "warp": _draw_warps, "erase": _draw_rectangles}
    columns = [draw_columns[part](settings, generator, size) for part in parts(settings)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _draw_moves(settings: AugmentConfig, generator: np.random.Generator, size: int) -> np.ndarray:
    flipped = generator.random(size) < settings.flip
    return np.column_stack(
        [flipped, generator.integers(-settings.shift, settings.shift + 1, (size, 2))]
    )


def _draw_warps(settings: AugmentConfig, generator: np.random.Generator, size: int) -> np.ndarray:
    flipped, down, right = _draw_moves(settings, generator, size).T
    angle = np.radians(settings.rotate) * generator.uniform(-1, 1, size)
    scale = generator.uniform(settings.crop, 1, size)
    crop_centre = (1 - scale[:, None]) * generator.uniform(-1, 1, (size, 2))
    mirror = 1 - 2 * flipped
    # From new coordinates to old ones: flip, crop, then shift and rotate about the centre.
    matrix = np.empty((size, 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * np.cos(angle) * mirror, -scale * np.sin(angle)
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * np.sin(angle) * mirror, scale * np.cos(angle)
    matrix[:, 0, 2] = crop_centre[:, 0] - right * 2 / SIDE
    matrix[:, 1, 2] = crop_centre[:, 1] - down * 2 / SIDE
    return matrix.reshape(size, 6)


def _draw_rectangles(
    settings: AugmentConfig, generator: np.random.Generator, size: int
) -> np.ndarray:
    largest = max(1, math.floor(settings.erase_size * SIDE))
    height, width = generator.integers(1, largest + 1, (2, size))
    # A rectangle without rows erases nothing.
    height = np.where(generator.random(size) < settings.erase, height, 0)
    top, left = (np.floor(generator.random(size) * (SIDE + 1 - side)) for side in (height, width))
    return np.column_stack([top, top + height, left, left + width])


def augmented(images: torch.Tensor, drawn: torch.Tensor, parts: tuple[str, ...]) -> torch.Tensor:
    """Return the images augmented according to their random draws.

    Args:
        images: float32 [..., 1, 28, 28] in [-1, 1].
        drawn: float32 [..., D] on the same device; one row of `draws` per image.
        parts: the operations, as the function `parts` returns them.
    """
    flat, rows = images.reshape(-1, 1, SIDE, SIDE), drawn.reshape(-1, drawn.shape[-1])
    for part in parts:
        if part == "erase":
            flat = _erase(flat, rows[:, -4:])
        else:
            flat = _move(flat, rows) if part == "move" else _warp(flat, rows[:, :6])
    return flat.view(images.shape)


def _move(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    index = torch.arange(SIDE, device=images.device)
    flipped, down, right = rows[:, :3].long().unsqueeze(-1).unbind(1)  # each [n, 1]
    y, x = index - down, torch.where(flipped > 0, SIDE - 1 - index, index) - right
    inside = _within(y, 0, SIDE).unsqueeze(2) & _within(x, 0, SIDE).unsqueeze(1)
    source = y.clamp(0, SIDE - 1).unsqueeze(2) * SIDE + x.clamp(0, SIDE - 1).unsqueeze(1)
    moved = images.flatten(1).gather(1, source.flatten(1)).view(-1, SIDE, SIDE)
    return torch.where(inside, moved, BACKGROUND).unsqueeze(1)


def _warp(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    grid = affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    # grid_sample pads with 0, so the background is moved to 0 and back.
    return grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND


def _erase(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    index = torch.arange(SIDE, device=images.device)
    top, bottom, left, right = rows.unsqueeze(-1).unbind(1)
    rectangle = _within(index, top, bottom).unsqueeze(2) & _within(index, left, right).unsqueeze(1)
    return torch.where(rectangle.unsqueeze(1), ERASED, images)


def _within(
    values: torch.Tensor, start: torch.Tensor | int, end: torch.Tensor | int
) -> torch.Tensor:
    return (values >= start) & (values < end)
