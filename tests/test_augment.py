"""Augmentation: against torchvision's functions image by image, and drawn as promised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision

from fmnist_sweep import augment as command
from fmnist_sweep.engine.augmentation import augmented, draws, parts
from fmnist_sweep.engine.chunk import Chunk
from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataSplits, Examples, epoch_permutation
from fmnist_sweep.engine.recipe import Recipe
from fmnist_sweep.engine.settings import AugmentConfig
from fmnist_sweep.engine.step import StepCache, Trial, TrialState
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.data.fashion import FORMAT
from tests.conftest import InProcess, mlp

OPTIONS = sorted(path.stem for path in Path(conf_folder(), "augment").glob("*.yaml"))
IMAGES = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(3)) * 2 - 1


def settings(**changed: Any) -> AugmentConfig:
    none = {"flip": 0.0, "rotate": 0.0, "shift": 0, "crop": 1.0, "erase": 0.0, "erase_size": 0.5}
    return AugmentConfig.model_validate({**none, **changed})


def option(name: str) -> AugmentConfig:
    with initialize_config_dir(conf_folder()):
        return parsed(compose("config", [f"augment={name}"])).augment


def changed(how: AugmentConfig, images: torch.Tensor, epoch: int = 1) -> torch.Tensor:
    drawn = torch.from_numpy(draws(how, 5, epoch, len(images), FORMAT.shape))
    return augmented(images, drawn, parts(how), FORMAT)


def test_the_options_are_those_promised() -> None:
    assert OPTIONS == ["crop", "erase", "flip", "flip_rotate", "none", "shift", "standard"]
    assert parts(option("none")) == ()


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "none"])
def test_images_change_each_in_its_own_way_and_stay_in_range(name: str) -> None:
    one = IMAGES[:1].expand(200, -1, -1, -1)
    first, second = changed(option(name), one), changed(option(name), one, epoch=2)
    assert first.shape == one.shape and first.dtype == torch.float32
    assert first.min() >= -1 and first.max() <= 1
    assert len(first.flatten(1).unique(dim=0)) > 1
    assert not torch.equal(first, second)
    assert torch.equal(first, changed(option(name), one))


def test_flips_mirror_a_share_of_the_images() -> None:
    many = IMAGES[:1].expand(4000, -1, -1, -1)
    new = changed(settings(flip=0.25), many)
    mirrored = (new == torchvision.horizontal_flip(many)).flatten(1).all(1)
    assert ((new == many).flatten(1).all(1) | mirrored).all()
    assert abs(mirrored.float().mean() - 0.25) < 0.03


def test_shifts_are_torchvisions_and_reach_every_distance() -> None:
    how = settings(shift=2)
    drawn = draws(how, 0, 1, 1000, FORMAT.shape)
    assert {tuple(row) for row in drawn[:, 1:]} == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }
    new = augmented(IMAGES, torch.from_numpy(drawn[:50]), parts(how), FORMAT)
    for image, after, (_, down, right) in zip(IMAGES, new, drawn.tolist()):
        place = {"angle": 0.0, "scale": 1.0, "shear": [0.0], "fill": [-1.0]}
        torch.testing.assert_close(
            after, torchvision.affine(image, translate=[int(right), int(down)], **place)
        )


def test_rotations_are_torchvisions() -> None:
    how = settings(rotate=30.0)
    matrices = draws(how, 0, 1, 50, FORMAT.shape)
    angles = np.degrees(np.arctan2(matrices[:, 3], matrices[:, 0]))
    assert np.abs(angles).max() <= 30 and np.abs(angles).max() > 25
    new = augmented(IMAGES, torch.from_numpy(matrices), parts(how), FORMAT)
    for image, after, angle in zip(IMAGES, new, angles.tolist()):
        # Background is 0 to it: what it fills in otherwise it blends twice at the border.
        expected = torchvision.rotate(image + 1, angle, InterpolationMode.BILINEAR) - 1
        torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


def test_a_warp_of_whole_pixels_is_a_move() -> None:
    moved = settings(flip=0.5, shift=3)
    warped = settings(flip=0.5, shift=3, crop=1 - 1e-9)
    assert parts(moved) != parts(warped)
    torch.testing.assert_close(changed(warped, IMAGES), changed(moved, IMAGES), atol=1e-4, rtol=0)


def test_crops_lie_within_the_image_and_fill_it() -> None:
    matrices = draws(settings(crop=0.5), 0, 1, 1000, FORMAT.shape).reshape(-1, 2, 3)
    share, offset = matrices[:, 0, 0], np.abs(matrices[:, :, 2])
    assert share.min() >= 0.5 and share.min() < 0.52 and share.max() > 0.98
    assert (offset <= 1 - share[:, None] + 1e-6).all() and offset.max() > 0.4
    white = torch.ones(200, 1, 28, 28)
    torch.testing.assert_close(
        changed(settings(crop=0.5), white)[:, :, 1:-1, 1:-1], white[:, :, 1:-1, 1:-1]
    )


def test_erasing_leaves_rectangles_of_grey() -> None:
    white = torch.ones(2000, 1, 28, 28)
    new = changed(settings(erase=0.4, erase_size=0.25), white)
    gone = new[:, 0] == 0
    assert (gone | (new[:, 0] == 1)).all()
    assert abs(gone.flatten(1).any(1).float().mean() - 0.4) < 0.05
    height, width = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.flatten(1).sum(1), height * width)
    assert height.max() == width.max() == 7


def test_training_sees_augmented_images_and_evaluation_does_not() -> None:
    """A step's loss is that of the very images that the draws give."""
    pixels = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    images = Examples(pixels, torch.arange(40) % 10)
    data = DataSplits(images, images, None, FORMAT)
    how = option("standard")
    torch.manual_seed(1)
    trial = Trial(mlp(16, 2, None, 0.0), torch.optim.SGD, {"lr": 1e-12}, 9, 2, Recipe(augment=how))
    loss = torch.nn.functional.cross_entropy
    steps = StepCache(trial, FORMAT, False, False, torch.device("cpu"))
    chunk = Chunk([TrialState(0, trial, steps, 3)], steps, data.train, 16)
    for epoch in (1, 2):
        chunk.begin_epoch()
        chunk.run(3)
        chosen = epoch_permutation(9, epoch, 40)
        seen = augmented(
            BYTES_TO_UNIT(pixels[chosen]),
            torch.from_numpy(draws(how, 9, epoch, 40, FORMAT.shape)),
            parts(how),
            FORMAT,
        )
        expected = loss(trial.model(seen), images.labels[chosen]).item()
        assert chunk.running_means()[0][0] == pytest.approx(expected, rel=1e-5)
        plain = loss(trial.model(BYTES_TO_UNIT(pixels)), images.labels).item()
        assert chunk.evaluate(data.validation)[0][0] == pytest.approx(plain, rel=1e-5)


def test_the_picture_is_drawn(in_process: InProcess) -> None:
    run = in_process(command.main)
    outcome = run("augment=standard", "augment.rotate=10", "data.train_size=100")
    assert outcome.code == 0 and "outputs/augment.png" in outcome.out
    assert Path("outputs/augment.png").read_bytes().startswith(b"\x89PNG")
    wrong = run("augment.flip=2", "--out", "wrong.png")
    assert wrong.code == 1 and wrong.err == "augment.flip=2: must be >= 0 and <= 1\n"
    nothing = run("--out", "wrong.png")
    assert nothing.code == 1 and nothing.err.startswith("augment=none: changes no image")
    unknown = run("augment=standrd")
    assert unknown.code == 1 and "augment/standrd" in unknown.err
    assert len(unknown.err.splitlines()) == 1 and not Path("wrong.png").exists()
