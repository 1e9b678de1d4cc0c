"""Flips, shifts, rotations, crops and erasing of whole batches on the device.

torchvision's transforms draw once for a batch; here each image has draws of its own. All draws of
an epoch are made before it begins, from the trial's seed and the epoch's number alone.
"""

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from fmnist_sweep.engine.settings import AugmentConfig

SIDE = 28
BACKGROUND, ERASED = -1.0, 0.0


def parts(settings: AugmentConfig) -> tuple[str, ...]:
    """What is done to a batch; trials that share a step agree in it, not in its strength.

    "move" takes each pixel from another, "warp" interpolates between four of them.
    """
    warps = settings.rotate > 0 or settings.crop < 1
    moves = settings.flip > 0 or settings.shift > 0
    first = ("warp",) if warps else ("move",) if moves else ()
    return (*first, "erase") if settings.erase > 0 else first


def draws(settings: AugmentConfig, seed: int, epoch: int, size: int) -> np.ndarray:
    """What happens to each of an epoch's images: float32 [size, D], in the order they are seen.

    D is 3 for "move" (flip, shift down, shift right), 6 for "warp" (an affine map from the new
    image's coordinates to the old one's, as `affine_grid` takes it), and 4 more for "erase"
    (top, bottom, left, right of a rectangle).
    """
    random = np.random.default_rng(np.random.SeedSequence([seed, epoch, 3]))
    columns = {"move": _moves, "warp": _warps, "erase": _rectangles}
    drawn = [columns[part](settings, random, size) for part in parts(settings)]
    return np.concatenate(drawn, axis=1).astype(np.float32)


def _moves(settings: AugmentConfig, random: np.random.Generator, size: int) -> np.ndarray:
    flipped = random.random(size) < settings.flip
    return np.column_stack(
        [flipped, random.integers(-settings.shift, settings.shift + 1, (size, 2))]
    )


def _warps(settings: AugmentConfig, random: np.random.Generator, size: int) -> np.ndarray:
    flipped, down, right = _moves(settings, random, size).T
    angle = np.radians(settings.rotate) * random.uniform(-1, 1, size)
    share = random.uniform(settings.crop, 1, size)
    free = (1 - share[:, None]) * random.uniform(-1, 1, (size, 2))
    mirrored = 1 - 2 * flipped
    # From the new coordinates back to the old: flip, crop, then shift and rotate about the centre.
    matrix = np.empty((size, 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = share * np.cos(angle) * mirrored, -share * np.sin(angle)
    matrix[:, 1, 0], matrix[:, 1, 1] = share * np.sin(angle) * mirrored, share * np.cos(angle)
    matrix[:, 0, 2] = free[:, 0] - right * 2 / SIDE
    matrix[:, 1, 2] = free[:, 1] - down * 2 / SIDE
    return matrix.reshape(size, 6)


def _rectangles(settings: AugmentConfig, random: np.random.Generator, size: int) -> np.ndarray:
    largest = max(1, math.floor(settings.erase_size * SIDE))
    height, width = random.integers(1, largest + 1, (2, size))
    # Where nothing is erased the rectangle has no rows.
    height = np.where(random.random(size) < settings.erase, height, 0)
    top, left = (np.floor(random.random(size) * (SIDE + 1 - side)) for side in (height, width))
    return np.column_stack([top, top + height, left, left + width])


def augmented(images: torch.Tensor, drawn: torch.Tensor, parts: tuple[str, ...]) -> torch.Tensor:
    """Images as the draws have it.

    Args:
        images: float32 [..., 1, 28, 28] in [-1, 1].
        drawn: float32 [..., D], one row of `draws` an image, on the same device.
    """
    flat, rows = images.reshape(-1, 1, SIDE, SIDE), drawn.reshape(-1, drawn.shape[-1])
    for part in parts:
        if part == "erase":
            flat = _erased(flat, rows[:, -4:])
        else:
            flat = _moved(flat, rows) if part == "move" else _warped(flat, rows[:, :6])
    return flat.view(images.shape)


def _moved(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    at = torch.arange(SIDE, device=images.device)
    flipped, down, right = rows[:, :3].long().unsqueeze(-1).unbind(1)  # each [n, 1]
    y, x = at - down, torch.where(flipped > 0, SIDE - 1 - at, at) - right
    inside = _within(y, 0, SIDE).unsqueeze(2) & _within(x, 0, SIDE).unsqueeze(1)
    source = y.clamp(0, SIDE - 1).unsqueeze(2) * SIDE + x.clamp(0, SIDE - 1).unsqueeze(1)
    taken = images.flatten(1).gather(1, source.flatten(1)).view(-1, SIDE, SIDE)
    return torch.where(inside, taken, BACKGROUND).unsqueeze(1)


def _warped(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    grid = affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    # What lies outside of an image is 0 to grid_sample.
    return grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND


def _erased(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    at = torch.arange(SIDE, device=images.device)
    top, bottom, left, right = rows.unsqueeze(-1).unbind(1)
    rectangle = _within(at, top, bottom).unsqueeze(2) & _within(at, left, right).unsqueeze(1)
    return torch.where(rectangle.unsqueeze(1), ERASED, images)


def _within(
    values: torch.Tensor, least: torch.Tensor | int, end: torch.Tensor | int
) -> torch.Tensor:
    return (values >= least) & (values < end)
