"""Draw samples of augmented training images: `python -m fmnist_sweep.augment augment=…`."""

import argparse
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.figures import Figure, png
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.engine.augmentation import augmented, draws, parts
from fmnist_sweep.engine.data import DataFormat
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config, conf_folder, parse
from fmnist_sweep.task.data.splits import load

IMAGES = 6  # rows of the picture
SAMPLES = 8  # augmented copies of each image


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.augment", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("overrides", nargs="*", help="such as augment=standard augment.shift=3")
    parser.add_argument("--out", type=Path, default=Path("outputs/augment.png"))
    arguments = parser.parse_args()
    command.run(lambda: _draw(arguments.overrides, arguments.out), _explain)


def _draw(overrides: list[str], out: Path) -> None:
    drawn = picture(composed(overrides))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, drawn)
    print(f"Saved to {out}")


def _explain(error: Exception) -> str | None:
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(str(error).partition("Config search path:")[0].split())
    return None


def composed(overrides: list[str]) -> Config:
    """Compose a configuration from overrides and check it.

    Args:
        overrides: Hydra's overrides, such as `augment=flip`.

    Raises:
        ConfigError: a value that is not allowed.
    """
    with initialize_config_dir(conf_folder()):
        config = compose("config", overrides)
    return parse(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def picture(config: Config) -> bytes:
    """Return a PNG whose rows show a training image and its augmented copies of the first epochs.

    Raises:
        ConfigError: the configuration augments nothing.
        DataError: the data set is missing or damaged.
    """
    if not parts(config.augment):
        raise ConfigError("augment=none: changes no image; give it another option or a key")
    data = load(config.data, torch.device("cpu"), test=False)
    build.check_augmentation(config.augment, data.format)
    images = data.train
    _, chosen = np.unique(images.own_labels.numpy(), return_index=True)
    originals = data.format.scaling(torch.cat([images.slice(i, i + 1)[0] for i in chosen[:IMAGES]]))
    columns = [originals]
    for epoch in range(1, SAMPLES + 1):
        drawn = draws(config.augment, config.seed, epoch, len(originals), data.format.shape)
        columns.append(
            augmented(originals, torch.from_numpy(drawn), parts(config.augment), data.format)
        )
    figure = Figure(figsize=(0.9 * len(columns), 0.9 * len(originals) + 0.4), dpi=110)
    axes = figure.subplots(len(originals), len(columns), squeeze=False)
    for row, cells in enumerate(axes):
        for column, (cell, samples) in enumerate(zip(cells, columns)):
            cell.imshow(_as_picture(samples[row], data.format), cmap="gray", vmin=0, vmax=1)
            cell.set_axis_off()
            if row == 0:
                cell.set_title(f"epoch {column}" if column else "original", fontsize=8)
    settings = config.augment.model_dump()
    title = "  ".join(f"augment.{key}={value}" for key, value in settings.items())
    figure.suptitle(title, fontsize=8)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.5 / figure.get_figheight(), 0.05, 0.05)
    return png(figure)


def _as_picture(image: torch.Tensor, data: DataFormat) -> np.ndarray:
    """Return a scaled image as grey [height, width] or colour [height, width, 3] in [0, 1]."""
    black, white = (torch.tensor(data.scaled(value)).view(-1, 1, 1) for value in data.range)
    shown = ((image - black) / (white - black)).clamp(0, 1).permute(1, 2, 0)
    return shown.squeeze(-1).numpy()


if __name__ == "__main__":
    main()
