"""Every configuration file composes, passes the checks and shows how to use it."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fmnist_sweep import sweep
from fmnist_sweep.task import build
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import conf_folder

CONF = Path(conf_folder())
SWEEP = Path(sweep.__file__).parent / "conf"
FILES = sorted(path.relative_to(root) for root in (CONF, SWEEP) for path in root.rglob("*.yaml"))


def path_of(file: Path) -> Path:
    return next(root / file for root in (CONF, SWEEP) if (root / file).exists())


def test_all_files_are_seen() -> None:
    assert len(FILES) == 69


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_composes_and_passes_the_checks(file: Path) -> None:
    GlobalHydra.instance().clear()
    group, option = str(file.parent), file.stem
    arguments = [] if group == "." else [f"{group}={option}"]
    if "precision: bf16" in path_of(file).read_text() and not build.has_bf16(torch.device("cpu")):
        arguments.append("trainer.precision=float32")  # as one would on such a processor
    with initialize_config_dir(str(CONF)):
        config = compose("config", arguments)
    if group == "data" and option != "fashion_mnist":  # its files are made in test_own_data
        for key in OmegaConf.missing_keys(config):
            OmegaConf.update(config, key, "given")
        assert parsed(config).data.kind == option
        return
    build.check(parsed(config))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_header_has_a_command(file: Path) -> None:
    header = [line for line in path_of(file).read_text().splitlines() if line.startswith("#")]
    assert any(re.match("#   (\\w+=\\S+ )?python -m fmnist_sweep.train", line) for line in header)
