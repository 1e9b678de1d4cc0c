"""Build what a configuration describes: the model, the optimizer and the device."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from fmnist_sweep.base.errors import ConfigError, first_line
from fmnist_sweep.engine import augmentation, functional_model
from fmnist_sweep.engine.data import DataFormat
from fmnist_sweep.engine.optimizers import stacked_optimizer
from fmnist_sweep.engine.recipe import CONSTANT, Recipe
from fmnist_sweep.engine.settings import AugmentConfig, PiecewiseConfig
from fmnist_sweep.engine.stack import have_equal_steps
from fmnist_sweep.engine.step import Hyperparameters, Trial
from fmnist_sweep.results.keys import is_below
from fmnist_sweep.task.config import (
    CHANGEABLE,
    Config,
    OptimizerConfig,
    trusted_targets,
    with_values,
)
from fmnist_sweep.task.data import splits


def check(config: Config) -> None:
    """Check that a trial can be trained: targets, their arguments, the device.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    chosen = device(config)
    if config.trainer.precision == "bf16" and not has_bf16(chosen):
        raise ConfigError(f"trainer.precision=bf16: {chosen} has no bfloat16; use float32")
    data = splits.describe(config.data)
    trial = build(config, data.format, data.training)
    try:
        functional_model.check(trial.model, data.format)
    except ValueError as error:
        raise ConfigError(f"model._target_={config.model.target}: {error}") from None


def _check_last_batch(config: Config, model: nn.Module, shape: Sequence[int], count: int) -> None:
    """Refuse a last batch of one example if the model has batch norm, which needs a variance."""
    size = config.data.batch_size
    if min(size, count % size or size) > 1:
        return
    try:
        copy.deepcopy(model).train()(torch.zeros(1, *shape))
    except Exception as error:  # other errors are reported by `check` or by training
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                f"data.batch_size={size}: leaves a batch of one of {count:,} images, of which "
                "batch norm cannot take a variance; choose another data.batch_size or "
                "data.train_size"
            ) from None


def build(config: Config, data: DataFormat, count: int) -> Trial:
    """Build the model, with weights drawn from the trial's seed, and look up the optimizer.

    Args:
        config: the trial's configuration.
        data: the format of the examples.
        count: the number of training examples.

    Raises:
        ConfigError: a target is not trusted, does not exist or refuses its arguments, or the model
            cannot be trained on the batches.
    """
    check_augmentation(config.augment, data)
    if config.model.weights not in (None, "none") and config.data.normalise != "minmax":
        raise ConfigError(
            f"data.normalise={config.data.normalise}: model.weights={config.model.weights} expects "
            "images in [-1, 1]; use minmax"
        )
    target, arguments = config.model.target, config.model.arguments
    given = _asked_for(target, {"inputs": tuple(data.shape), "classes": data.classes})
    model = _make_model(target, {**given, **arguments}, config.seed)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={config.model.target}: must make a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model._target_={config.model.target}: has no weights to train")
    _check_last_batch(config, model, data.shape, count)
    arguments = config.optimizer.arguments
    cls = _class("optimizer", config.optimizer.target)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer._target_={config.optimizer.target}: must be an optimizer")
    _check_optimizer(cls, arguments)
    trial = Trial(model, cls, dict(arguments), config.seed, config.trainer.epochs, _recipe(config))
    if isinstance(config.scheduler, PiecewiseConfig) and config.scheduler.changes:
        trial.changes = _changes(config, config.scheduler, trial, data, count)
    return trial


def _changes(
    config: Config, schedule: PiecewiseConfig, trial: Trial, data: DataFormat, count: int
) -> list[tuple[int, Hyperparameters]]:
    """Return the changes of a piecewise schedule: of each epoch all hyperparameters from then on.

    Raises:
        ConfigError: a key cannot change during the training.
    """
    if stacked_optimizer(trial.optimizer, trial.arguments) is None:
        raise ConfigError(
            f"scheduler=piecewise: needs adam, adamw, nadam, rmsprop or sgd, not "
            f"{trial.optimizer.__name__} with these arguments"
        )
    changes = []
    constant = config.model_copy(update={"scheduler": CONSTANT})
    for epoch, values in sorted(schedule.changes.items()):
        where = f"scheduler.changes[{epoch}]"
        for key in values:
            if not is_below(key, CHANGEABLE):
                raise ConfigError(
                    f"{where}: {key} cannot change in mid-training; what can: "
                    f"{', '.join(CHANGEABLE)}"
                )
        try:
            constant = with_values(constant, values)
            other = build(constant, data, count)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not have_equal_steps(trial, other):
            raise ConfigError(
                f"{where}: {', '.join(values)} cannot take these values in mid-training: the "
                "training step would be another one"
            )
        persistent = other.model.state_dict()
        buffers = {n: b for n, b in other.model.named_buffers() if n not in persistent}
        changes.append((epoch, Hyperparameters(other.arguments, other.recipe, buffers)))
    return changes


def check_changes(config: Config, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check that a trial can change within ranges in mid-training.

    Args:
        config: the trial's configuration.
        ranges: the lowest and the highest value of each key.

    Raises:
        ConfigError: one line with the key, or the setting, that is in the way.
    """
    pbt = "hydra/sweeper/scheduler=pbt"
    if config.scheduler.kind != "constant":
        raise ConfigError(
            f"scheduler={config.scheduler.kind}: {pbt} makes the schedule itself; use constant"
        )
    if config.trainer.early_stopping.patience is not None:
        raise ConfigError(
            f"trainer.early_stopping.patience={config.trainer.early_stopping.patience}: {pbt} "
            "trains all trials to their end; use null"
        )
    if config.repeats > 1:
        raise ConfigError(f"repeats={config.repeats}: {pbt} trains each trial on one seed; use 1")
    data = splits.describe(config.data)
    for key, (low, high) in ranges.items():
        changes = {2: {key: low}, 3: {key: high}}
        schedule = PiecewiseConfig(kind="piecewise", changes=changes)
        trial = build(with_values(config, {key: high}), data.format, data.training)
        try:
            _changes(config, schedule, trial, data.format, data.training)
        except ConfigError as error:
            line = str(error).partition(": ")[2]
            raise ConfigError(f"{key}, from {low:g} to {high:g}: {line}") from None


def _make_model(target: str, arguments: Mapping[str, Any], seed: int) -> Any:
    """Call a model's class; leave arguments that may hold further targets to Hydra."""
    if not any(isinstance(value, dict | list) for value in arguments.values()):
        cls = _class("model", target)
        torch.manual_seed(seed)
        with contextlib.suppress(Exception):  # Hydra has the words for what goes wrong
            return cls(**arguments)
    torch.manual_seed(seed)
    return _instantiate("model", target, arguments)


def _asked_for(target: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that a model's class names among its parameters."""
    try:
        known = inspect.signature(_class("model", target)).parameters
    except ValueError:  # a class that is written in C
        return {}
    return {name: value for name, value in offered.items() if name in known}


def check_augmentation(augment: AugmentConfig, data: DataFormat) -> None:
    """Refuse an augmentation that the data cannot have."""
    if not augmentation.parts(augment):
        return
    if not data.is_image:
        raise ConfigError(
            f"augment: changes images, and the data has examples of shape {list(data.shape)}; "
            "augment=none"
        )
    if augment.shift >= min(data.shape[1:]):
        raise ConfigError(
            f"augment.shift={augment.shift}: must be less than {min(data.shape[1:])}, the side of "
            "an image"
        )


def _check_optimizer(cls: type[torch.optim.Optimizer], arguments: Mapping[str, Any]) -> None:
    _check_names("optimizer", cls, arguments, {"params"})
    try:
        ours = stacked_optimizer(cls, arguments)
        # PyTorch's classes import its compiler, in more than a second. Where the schema has checked
        # all arguments, they have nothing left to refuse.
        if ours is None or not arguments.keys() <= OptimizerConfig.model_fields.keys():
            cls([nn.Parameter(torch.zeros(1, 1))], **arguments)  # a matrix: Muon takes nothing else
    except (TypeError, ValueError, RuntimeError) as error:
        line = first_line(error)
        raise ConfigError(line if line.startswith("optimizer.") else f"optimizer: {line}") from None


def _recipe(config: Config) -> Recipe:
    trainer = config.trainer
    stops = trainer.early_stopping.patience is not None
    return Recipe(
        scheduler=config.scheduler,
        label_smoothing=trainer.label_smoothing,
        class_balance=trainer.class_balance,
        clip_norm=trainer.clip_norm,
        average=trainer.average,
        early_stopping=trainer.early_stopping if stops else None,
        decay_all=config.optimizer.decay == "all",
        augment=config.augment,
    )


def has_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        with torch.cuda.device(device.index):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    has_instructions = capabilities.get("avx512_bf16") or capabilities.get("bf16")
    return device.type == "cpu" and bool(has_instructions)


def _cuda_works() -> bool:
    """Return whether CUDA can be used; devices are counted even if the driver is too old."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()


def device(config: Config) -> torch.device:
    """Return the device that `trainer.device` names; `auto` prefers a GPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    wish = config.trainer.device
    if wish == "auto":
        if _cuda_works():
            return torch.device("cuda")
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    named = torch.device(wish)
    if named.type == "cuda":
        count = torch.cuda.device_count() if _cuda_works() else 0
        if (named.index or 0) >= count:
            found = f"only cuda:0 to cuda:{count - 1} are there" if count else "no CUDA device here"
            raise ConfigError(f"trainer.device={wish}: {found}; auto takes what there is")
    if named.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.device={wish}: no MPS device here; auto takes what there is")
    return named


def _class(group: str, target: str) -> Any:
    """Return what a trusted target names."""
    return _look_up(group, target, trusted_targets())


@functools.lru_cache(maxsize=64)
def _look_up(group: str, target: str, _trusted: Sequence[str]) -> Any:
    """Let Hydra look up a target, which takes it milliseconds."""
    return _instantiate(group, target, {}, _partial_=True).func


def _instantiate(group: str, target: str, arguments: Mapping[str, Any], **special: Any) -> Any:
    """Call Hydra's `instantiate` for a trusted target; raise its errors as one line."""
    values = {"_target_": target, **arguments, **special}
    try:
        return instantiate(values, _execution_whitelist_=trusted_targets())
    except InstantiationException as error:
        text = first_line(error)
        if "execution whitelist" in " ".join(str(error).split()):
            text = (
                f"not a trusted target ({', '.join(trusted_targets())}); the environment "
                "variable FMNIST_SWEEP_TRUST=yourpackage.* adds your own"
            )
        raise ConfigError(f"{group}._target_={target}: {text}") from None
    except (ValueError, TypeError) as error:
        # The messages of this package's own models begin with the key.
        text = first_line(error)
        has_key = text.startswith(f"{group}.")
        raise ConfigError(text if has_key else f"{group}._target_={target}: {text}") from None


def _check_names(group: str, cls: type, arguments: Mapping[str, Any], given: set[str]) -> None:
    """Refuse arguments that a class does not take, except those `given` by the package itself."""
    known = set(inspect.signature(cls).parameters) - given
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"{group}.{name}: {cls.__name__} takes no such argument "
                f"(it takes {', '.join(sorted(known))})"
            )
