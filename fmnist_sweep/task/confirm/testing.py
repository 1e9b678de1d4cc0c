"""Evaluate the winner's models on the test images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.engine.data import DataFormat, Examples
from fmnist_sweep.models import weights
from fmnist_sweep.results import record
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.data import splits
from fmnist_sweep.task.data.idx import CLASS_NAMES

FILE = "test.json"
BATCH = 1000


def _square(rows: list[list[int]]) -> list[list[int]]:
    if len(rows) < 2 or any(len(row) != len(rows) for row in rows):
        raise ValueError("must have a row and a column for each class")
    return rows


class _Found(BaseModel):
    """The contents of `test.json`."""

    model_config = ConfigDict(strict=True)

    test_loss: float
    test_accuracy: float
    confusion: Annotated[list[list[int]], AfterValidator(_square)]
    classes: list[str] = list(CLASS_NAMES)  # of the data set that earlier versions tested on


def tested(config: Config, runs: Mapping[int, Path]) -> dict[int, dict[str, Any]]:
    """Evaluate each seed's model once, and read the result of a model that was evaluated before.

    Args:
        config: the configuration of the models, with any seed.
        runs: the finished run folders by seed.

    Returns:
        By seed: test_loss in nats, test_accuracy in [0, 1], confusion, counts [classes][classes]
        with a row for each true class and a column for each predicted class, and the names of the
        classes; also in `test.json`.

    Raises:
        DataError, ConfigError, RecordError: the images, a model or an earlier result is unreadable.
    """
    found = {}
    missing = {}
    for seed, run in runs.items():
        try:
            found[seed] = _Found.model_validate(record.read_json(run, FILE)).model_dump()
        except FileNotFoundError:
            missing[seed] = run
        except ValidationError:
            raise ConfigError(f"{run / FILE}: torn or edited; delete it to test anew") from None
    if missing:
        examples, form, names = splits.load_test(config.data)
        for seed, run in missing.items():
            found[seed] = {**_evaluate(config, run, examples, form), "classes": list(names)}
            record.write_json(run, FILE, found[seed])
    return {seed: found[seed] for seed in runs}


def _evaluate(config: Config, run: Path, examples: Examples, data: DataFormat) -> dict[str, Any]:
    """Evaluate a run's model on examples on the CPU."""
    where = build.device(config)
    model = build.build(config, data, splits.describe(config.data).training).model
    try:
        model.load_state_dict(weights.read(run / "model.pt"))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{run / 'model.pt'}: {str(error).splitlines()[0]}") from None
    model.eval().to(where)
    logits, labels = [], examples.own_labels
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            inputs, _ = examples.slice(start, start + BATCH)
            logits.append(model(data.scaling(inputs.to(where))).double().cpu())
    all_logits = torch.cat(logits)
    predicted = all_logits.argmax(-1)
    confusion = np.zeros((data.classes, data.classes), dtype=int)
    np.add.at(confusion, (labels.numpy(), predicted.numpy()), 1)
    return {
        "test_loss": float(torch.nn.functional.cross_entropy(all_logits, labels)),
        "test_accuracy": float((predicted == labels).double().mean()),
        "confusion": confusion.tolist(),
    }
