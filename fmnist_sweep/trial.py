"""One trial from its configuration to its finished run folder: data, model, training, record."""

import inspect
import io
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from fmnist_sweep import record
from fmnist_sweep.config import Config, ConfigError, trusted_targets
from fmnist_sweep.data import batches
from fmnist_sweep.record import Epoch
from fmnist_sweep.report import plots
from fmnist_sweep.screen import Screen
from fmnist_sweep.training import engine, skeleton
from fmnist_sweep.training.compiling import worth_compiling

log = logging.getLogger(__name__)


class TrialFailed(Exception):
    """The training itself went wrong, as when its loss became NaN; the message says how."""


def check(config: Config) -> None:
    """Finds now what would otherwise fail later: targets, their arguments, the device.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    device(config)
    trial = build(config)
    try:
        skeleton.probe(trial.model)
    except ValueError as error:
        raise ConfigError(f"model._target_={config.model.target}: {error}") from None


def build(config: Config) -> engine.Trial:
    """Makes the model, its weights drawn from the trial's seed, and names its optimizer.

    Raises:
        ConfigError: a target that is not trusted, does not exist or refuses its arguments.
    """
    torch.manual_seed(config.seed)
    model = _instantiate("model", config.model.target, config.model.arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={config.model.target}: must make a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model._target_={config.model.target}: has no weights to train")
    arguments = config.optimizer.arguments
    partial = _instantiate("optimizer", config.optimizer.target, arguments, _partial_=True)
    cls = partial.func
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer._target_={config.optimizer.target}: must be an optimizer")
    _check_names("optimizer", cls, arguments, {"params"})
    try:
        cls([nn.Parameter(torch.zeros(1))], **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {_first_line(error)}") from None
    return engine.Trial(model, cls, dict(arguments), config.seed, config.trainer.epochs)


def device(config: Config) -> torch.device:
    """The device that `trainer.device` names.

    Raises:
        ConfigError: it is not there.
    """
    wish = config.trainer.device
    if wish == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    found = torch.device(wish)
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            there = f"only cuda:0 to cuda:{count - 1} are there" if count else "no CUDA device here"
            raise ConfigError(f"trainer.device={wish}: {there}; auto takes what there is")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.device={wish}: no MPS device here; auto takes what there is")
    return found


def run(
    config: Config, folder: Path, *, test: bool, on_epoch: Callable[[Epoch], bool] | None = None
) -> dict[str, Any]:
    """Trains a trial and leaves a complete run folder.

    Args:
        folder: exists; Hydra has put its log and configuration there.
        test: whether to open the test images after the last epoch. A sweep never does.
        on_epoch: a sweep's, told of each finished epoch; False prunes the trial.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigError, DataError: nothing was trained; a folder that holds a run is left alone.
        TrialFailed: the loss or a weight became NaN or infinite; history and summary are written.
    """
    started = time.time()
    if record.holds_run(folder):
        raise ConfigError(f"{folder}: holds a run already, which is never overwritten")
    where = device(config)
    torch.set_num_threads(config.trainer.threads)
    # Dead ReLU units let Adam's moments decay into denormals, which slow a step several times.
    torch.set_flush_denormal(True)
    trial = build(config)
    data = batches.load(config.data, where, test)
    steps = config.trainer.epochs * math.ceil(len(data.train) / config.data.batch_size)
    compile, how = worth_compiling(config.trainer.compile, steps, where)
    parameters = sum(p.numel() for p in trial.model.parameters())
    log.info("Device: %s, %d thread(s), %s", where, config.trainer.threads, how)
    log.info("Model: %s with %s parameters", type(trial.model).__name__, f"{parameters:,}")
    record.write_json(
        folder,
        "environment.json",
        record.environment(
            device=str(where),
            device_name=torch.cuda.get_device_name(where) if where.type == "cuda" else None,
            threads=config.trainer.threads,
            steps=how,
        ),
    )
    screen = Screen(
        trial.epochs,
        math.ceil(len(data.train) / config.data.batch_size),
        bar=on_epoch is None and sys.stdout.isatty(),
    )
    history = _train(config, trial, data, folder, compile, screen, on_epoch)
    last = history[-1]
    finite = _finite(last)
    reason = None if finite else f"the loss became {last.train_loss} in epoch {last.epoch}"
    if finite and last.epoch < trial.epochs:
        reason = f"pruned after epoch {last.epoch} of {trial.epochs}"
    tested = _test(trial, data, where) if test and finite else None
    state = ("PRUNED" if reason else "COMPLETE") if finite else "FAILED"
    summary = {
        "state": state,
        "reason": reason,
        **_figures(config, history, parameters, len(data.train), tested),
        "started": started,
        "ended": time.time(),
    }
    record.write_whole(folder / "results.png", plots.curves(history, _title(config)))
    if finite:
        record.write_whole(folder / "model.pt", _saved(trial.model))
    record.write_json(folder, "summary.json", summary)
    if reason and not finite:
        raise TrialFailed(reason)
    if reason:
        log.info("%s", reason.capitalize())
    if tested:
        log.info("Final Test Accuracy: %.2f%%", 100 * tested[1])
    log.info("Run folder: %s", folder)
    return summary


def _train(
    config: Config,
    trial: engine.Trial,
    data: batches.Protocol,
    folder: Path,
    compile: bool,
    screen: Screen,
    wanted: Callable[[Epoch], bool] | None,
) -> list[Epoch]:
    """Trains, keeping `history.csv` up to date, until the end, a bad loss or a pruner's word."""
    history: list[Epoch] = []

    def on_epoch(_: int, row: Epoch) -> bool:
        history.append(row)
        record.write_history(folder, history)
        screen.end_epoch(row)
        going = _finite(row) and (wanted is None or wanted(row))
        if going:
            screen.begin_epoch(row.epoch + 1)
        return going

    screen.begin_epoch(1)
    try:
        engine.train(
            [trial],
            data,
            batch_size=config.data.batch_size,
            compile=compile,
            on_epoch=on_epoch,
            on_batches=lambda at: screen.batch(at.batch, at.loss, at.accuracy),
            log_every=config.trainer.log_every,
        )
    finally:
        screen.close()
    return history


def _finite(row: Epoch) -> bool:
    return math.isfinite(row.train_loss) and math.isfinite(row.val_loss)


def _test(trial: engine.Trial, data: batches.Protocol, where: torch.device) -> tuple[float, float]:
    assert data.test is not None
    return skeleton.evaluate(trial.model.to(where), data.test)


def _figures(
    config: Config,
    history: list[Epoch],
    parameters: int,
    train_size: int,
    tested: tuple[float, float] | None,
) -> dict[str, Any]:
    last = history[-1]
    best = max(history, key=lambda row: row.val_accuracy)
    seconds = sum(row.seconds for row in history)
    return {
        "name": config.name,
        "seed": config.seed,
        "epochs": len(history),
        "train_loss": last.train_loss,
        "train_accuracy": last.train_accuracy,
        "val_loss": last.val_loss,
        "val_accuracy": last.val_accuracy,
        "best_val_accuracy": best.val_accuracy,
        "best_epoch": best.epoch,
        "test_loss": tested[0] if tested else None,
        "test_accuracy": tested[1] if tested else None,
        "validation": config.data.validation,
        "train_size": train_size,
        "parameters": parameters,
        "seconds": seconds,
        "images_per_second": train_size * len(history) / seconds,
    }


def _title(config: Config) -> str:
    model, optimizer = (t.target.rsplit(".", 1)[-1] for t in (config.model, config.optimizer))
    return (
        f"{model}, {optimizer}, learning rate {config.optimizer.lr:g}, "
        f"batch {config.data.batch_size}, seed {config.seed}"
    )


def _saved(model: nn.Module) -> bytes:
    """The model's state dict as `torch.save` writes it."""
    file = io.BytesIO()
    torch.save({name: t.cpu() for name, t in model.state_dict().items()}, file)
    return file.getvalue()


def _instantiate(group: str, target: str, arguments: Mapping[str, Any], **special: Any) -> Any:
    """Hydra's `instantiate` within the whitelist, its failures as one line."""
    values = {"_target_": target, **arguments, **special}
    try:
        return instantiate(values, _execution_whitelist_=trusted_targets())
    except InstantiationException as error:
        text = _first_line(error)
        if "execution whitelist" in " ".join(str(error).split()):
            text = (
                f"not a trusted target ({', '.join(trusted_targets())}); the environment "
                "variable FMNIST_SWEEP_TRUST=yourpackage.* adds your own"
            )
        raise ConfigError(f"{group}._target_={target}: {text}") from None
    except (ValueError, TypeError) as error:
        # What a class of ours says of its arguments names the key itself.
        text = _first_line(error)
        own = text.startswith(f"{group}.")
        raise ConfigError(text if own else f"{group}._target_={target}: {text}") from None


def _check_names(group: str, cls: type, arguments: Mapping[str, Any], given: set[str]) -> None:
    """Refuses arguments that a class does not take."""
    known = set(inspect.signature(cls).parameters) - given
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"{group}.{name}: {cls.__name__} takes no such argument "
                f"(it takes {', '.join(sorted(known))})"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
