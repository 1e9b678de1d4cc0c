"""Sweep folders made by hand, so that what is to be found in them is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fmnist_sweep.results import record
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.task.config import conf_folder


def _config() -> dict[str, Any]:
    """The baseline's whole configuration, of two epochs on the CPU."""
    GlobalHydra.instance().clear()
    small = ["trainer.epochs=2", "trainer.device=cpu", "trainer.compile=false"]
    with initialize_config_dir(conf_folder()):
        values = OmegaConf.to_container(compose("config", small), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


CONFIG = _config()
KEY = "optimizer.lr"


def trial(value: float | None, state: str = "COMPLETE", **more: Any) -> dict[str, Any]:
    """One trial; `more`: params, default, epochs, seconds, std, repeats, reason, values, pauses."""
    return {"value": value, "state": state, **more}


def write(
    folder: Path,
    trials: Sequence[Mapping[str, Any]],
    *,
    objective: Sequence[str] = ("val_accuracy",),
    direction: Sequence[str] = ("maximize",),
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a sweep folder with its tables, as a sweep would have left it."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "data": {**CONFIG["data"], **(data or {})}}
    clock = 1000.0
    for number, one in enumerate(trials):
        run = folder / str(number)
        (run / ".hydra").mkdir(parents=True)
        params = one.get("params", {KEY: 0.001 * (number + 1)})
        optimizer = {**config["optimizer"], "lr": params.get(KEY, 0.001)}
        text = yaml.safe_dump({**config, "optimizer": optimizer})
        (run / ".hydra/config.yaml").write_text(text)
        epochs, seconds = one.get("epochs", 2), one.get("seconds", 2.0)
        value = one["value"]
        if value is not None and epochs:
            rows = [_epoch(k, value * k / epochs, seconds / epochs) for k in range(1, epochs + 1)]
            record.write_history(run, rows)
        note = {
            "trial": number,
            "params": params,
            "default": one.get("default", number == 0),
            "objective": list(objective),
            "direction": list(direction),
            "pauses": one.get("pauses", []),
        }
        record.write_json(run, "trial.json", note)
        summary = {
            "state": one["state"],
            "reason": one.get("reason"),
            "seed": 0,
            "epochs": epochs,
            "val_accuracy": value,
            "val_loss": None if value is None else 1 - value,
            "train_size": 50000,
            "seconds": seconds,
            "images_per_second": 50000 * epochs / seconds,
            "started": clock,
            "ended": clock + seconds + 1,
            **one.get("values", {}),
        }
        if "std" in one:
            summary |= {"val_accuracy_std": one["std"], "repeats": one["repeats"]}
        record.write_json(run, "summary.json", summary)
        environment = {"device": "cpu", "python": "3.12", "versions": {"torch": "2.14.1"}}
        (run / "environment.json").write_text(json.dumps(environment))
        clock += seconds + 2
    sweep = Sweep(folder)
    sweep.update()
    sweep.write()
    return folder


def _epoch(number: int, accuracy: float, seconds: float) -> Epoch:
    return Epoch(number, 0.001, 1 - accuracy, accuracy, 1 - accuracy, accuracy, seconds)
