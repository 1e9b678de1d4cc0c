"""Load the model that a run has left."""

from pathlib import Path

import torch
from torch import nn

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.task import build
from fmnist_sweep.task.config import parse
from fmnist_sweep.task.confirm.candidates import configuration
from fmnist_sweep.task.data import splits


def load(run: Path) -> nn.Module:
    """Return a run's model with its trained weights, in evaluation mode, on the CPU.

    Of a run on several seeds it is the first seed's.

    Raises:
        ConfigError, DataError: the run left no model, or it cannot be built again.
    """
    file = next((p for p in (run / "model.pt", run / "repeat-0/model.pt") if p.exists()), None)
    if file is None:
        raise ConfigError(f"{run}: left no model.pt")
    config = parse(configuration(run))
    data = splits.describe(config.data)
    model = build.build(config, data.format, data.training).model
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())[:200]}") from None
    return model.eval()
