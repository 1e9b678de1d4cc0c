"""From a configuration to what is trained: the model, its optimizer, the device."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from fmnist_sweep.base.errors import ConfigError, first_line
from fmnist_sweep.engine import functional_model
from fmnist_sweep.engine.recipe import Recipe
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.task.config import Config, trusted_targets


def check(config: Config) -> None:
    """Finds now what would otherwise fail later: targets, their arguments, the device.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    where = device(config)
    if config.trainer.precision == "bf16" and not has_bf16(where):
        raise ConfigError(f"trainer.precision=bf16: {where} has no bfloat16; float32 is there")
    trial = build(config)
    try:
        functional_model.check(trial.model)
    except ValueError as error:
        raise ConfigError(f"model._target_={config.model.target}: {error}") from None


def _check_last_batch(config: Config, model: nn.Module) -> None:
    """Refuses batches of one image where batch norm has nothing to take a variance of."""
    images, size = config.data.train_size or config.data.available, config.data.batch_size
    if min(size, images % size or size) > 1:
        return
    try:
        copy.deepcopy(model).train()(torch.zeros(1, 1, 28, 28))
    except Exception as error:  # whatever else is wrong, those tell who check and train
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                f"data.batch_size={size}: leaves a batch of one of {images:,} images, of which "
                "batch norm cannot take a variance; choose another data.batch_size or "
                "data.train_size"
            ) from None


def build(config: Config) -> Trial:
    """Makes the model, its weights drawn from the trial's seed, and names its optimizer.

    Raises:
        ConfigError: a target that is not trusted, does not exist or refuses its arguments, or
            batches that the model cannot be trained on.
    """
    torch.manual_seed(config.seed)
    model = _instantiate("model", config.model.target, config.model.arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={config.model.target}: must make a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model._target_={config.model.target}: has no weights to train")
    _check_last_batch(config, model)
    arguments = config.optimizer.arguments
    partial = _instantiate("optimizer", config.optimizer.target, arguments, _partial_=True)
    cls = partial.func
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer._target_={config.optimizer.target}: must be an optimizer")
    _check_names("optimizer", cls, arguments, {"params"})
    try:
        cls([nn.Parameter(torch.zeros(1, 1))], **arguments)  # Muon takes matrices alone
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {first_line(error)}") from None
    return Trial(model, cls, dict(arguments), config.seed, config.trainer.epochs, _recipe(config))


def _recipe(config: Config) -> Recipe:
    """What the training does beside plain steps."""
    trainer = config.trainer
    stops = trainer.early_stopping.patience is not None
    return Recipe(
        scheduler=config.scheduler,
        label_smoothing=trainer.label_smoothing,
        clip_norm=trainer.clip_norm,
        average=trainer.average,
        early_stopping=trainer.early_stopping if stops else None,
        decay_all=config.optimizer.decay == "all",
        augment=config.augment,
    )


def has_bf16(where: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself."""
    if where.type == "cuda":
        with torch.cuda.device(where.index):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return where.type == "cpu" and bool(able.get("avx512_bf16") or able.get("bf16"))


def _cuda_works() -> bool:
    """Devices are counted also where the driver is too old for this PyTorch."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()


def device(config: Config) -> torch.device:
    """The device that `trainer.device` names.

    Raises:
        ConfigError: it is not there.
    """
    wish = config.trainer.device
    if wish == "auto":
        if _cuda_works():
            return torch.device("cuda")
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    found = torch.device(wish)
    if found.type == "cuda":
        count = torch.cuda.device_count() if _cuda_works() else 0
        if (found.index or 0) >= count:
            there = f"only cuda:0 to cuda:{count - 1} are there" if count else "no CUDA device here"
            raise ConfigError(f"trainer.device={wish}: {there}; auto takes what there is")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.device={wish}: no MPS device here; auto takes what there is")
    return found


def _instantiate(group: str, target: str, arguments: Mapping[str, Any], **special: Any) -> Any:
    """Hydra's `instantiate` within the whitelist, its failures as one line."""
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
        # What a class of ours says of its arguments names the key itself.
        text = first_line(error)
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
