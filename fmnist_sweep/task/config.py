"""The schema of a trial's configuration: the type and range of every key.

The defaults are in `conf/`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import absolute, absolute_url
from fmnist_sweep.base.schema import Section, checked, trusted_packages
from fmnist_sweep.engine.settings import (
    AugmentConfig,
    EarlyStoppingConfig,
    PiecewiseConfig,
    SchedulerConfig,
    StepConfig,
    WarmupCosineConfig,
)
from fmnist_sweep.results.keys import CHANGES_NO_RESULT, put

# The environment variable with the default of `data.root`, and the default without it.
DATA_VARIABLE, DATA_FOLDER = "FMNIST_SWEEP_DATA", "data"


# Keys, and sections of keys, whose values can change between two epochs.
CHANGEABLE = (
    "optimizer",
    "augment",
    "model.dropout",
    *(f"trainer.{name}" for name in ("label_smoothing", "class_balance", "clip_norm", "average")),
)


def conf_folder() -> str:
    """Return the folder of the configuration files: in the installed package, or beside it."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


class _Target(Section):
    """A class to instantiate: its dotted name and its arguments.

    Keys that are not listed here are accepted and checked by the class itself.
    """

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_", min_length=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for the class: the keys that the configuration sets."""
        return self.model_dump(exclude_unset=True, exclude={"target", "decay"})


# A key of the classes below defaults to None only because some targets do not take it. A key that
# the configuration does not set is never passed on.
class ModelConfig(_Target):
    """The model: its class and the arguments that the package's own models take."""

    width: Annotated[int, Field(ge=1)] | None = None
    depth: Annotated[int, Field(ge=1)] | None = None
    hidden: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    batch_norm: bool | None = None
    architecture: str | None = None
    image_size: Literal[32, 64, 224] | None = None
    weights: str | None = None
    channels: Literal["repeat", "sum"] | None = None
    freeze: str | None = None
    unfreeze_after: Annotated[int, Field(ge=1)] | None = None
    body_lr: Annotated[float, Field(gt=0, le=1)] | None = None


class OptimizerConfig(_Target):
    """The optimizer: its class, its arguments, and the parameters that weight decay acts on."""

    lr: float = Field(gt=0)
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    nesterov: bool | None = None
    betas: (
        Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
        | None
    ) = None
    eps: Annotated[float, Field(gt=0)] | None = None
    decay: Literal["all", "matrices"] = "all"


def _classes(values: Any) -> tuple[int | str, ...]:
    """Return a list of classes as a sorted tuple, which can be the key of a cache."""
    is_list = isinstance(values, list | tuple) and all(type(v) in (int, str) for v in values)
    if not is_list or len({*values}) < max(2, len(values)):
        raise ValueError
    return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))


_Share = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Section):
    """The data set, its split and the batch size.

    The keys from `root` to `arguments` are those of some data sets; see `conf/data`. Configurations
    of earlier versions have neither `kind` nor `normalise`.
    """

    kind: Literal[
        "fashion_mnist",
        "mnist",
        "kmnist",
        "emnist",
        "cifar10",
        "cifar100",
        "arrays",
        "images",
        "table",
        "custom",
    ] = "fashion_mnist"
    root: Annotated[str, Field(min_length=1)] | None = None
    verify: bool = True
    split: Literal["letters", "balanced"] | None = None
    path: Annotated[str, Field(min_length=1)] | None = None
    target: str | None = None
    function: Annotated[str | None, Field(alias="_target_")] = None
    arguments: Mapping[str, Any] | None = None
    normalise: Literal["minmax", "standardise", "none"] = "minmax"
    validation: Literal["held_out", "test", "train"]
    val_size: Annotated[int, Field(ge=1)] | _Share
    train_size: Annotated[int, Field(ge=10)] | None
    classes: Annotated[tuple[int | str, ...], BeforeValidator(_classes)] | None
    split_seed: int = Field(ge=0)
    batch_size: int = Field(ge=1)


class TrainerConfig(Section):
    """The length, the device and the procedure of a trial's training."""

    epochs: int = Field(ge=1)
    label_smoothing: float = Field(ge=0, lt=1)
    class_balance: float = Field(ge=0, le=1, default=0.0)  # missing in earlier versions
    clip_norm: Annotated[float, Field(gt=0)] | None
    average: Annotated[float, Field(gt=0, lt=1)] | None
    early_stopping: EarlyStoppingConfig
    device: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    threads: int = Field(ge=1, le=1024)
    precision: Literal["float32", "bf16"]
    compile: bool | Literal["auto"]
    checkpoint: bool | Literal["auto"]
    log_every: int = Field(ge=1)


class LoggerConfig(Section):
    """The tracker that runs are logged to, beside the run folder."""

    kind: Literal["none", "tensorboard", "mlflow", "wandb"]
    uri: str | None


def as_exclude(keys: Sequence[str]) -> dict[str, Any]:
    """Return dotted keys in the form of pydantic's argument `exclude`."""
    exclude: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            exclude.setdefault(section, set()).add(name)
        else:
            exclude[section] = True
    return exclude


class Config(Section):
    """The whole configuration of one trial."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None
    seed: int = Field(ge=0, lt=2**63)
    repeats: int = Field(ge=1, le=1000)
    model: ModelConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    data: DataConfig
    augment: AugmentConfig
    trainer: TrainerConfig
    logger: LoggerConfig

    @property
    def identity(self) -> str:
        """All keys that the result depends on, as JSON text."""
        return self.model_dump_json(exclude=as_exclude(CHANGES_NO_RESULT))


def parse(values: Mapping[str, Any], folder: Path | None = None) -> Config:
    """Check a composed configuration and make its paths absolute.

    Args:
        values: the configuration as plain containers, interpolations resolved.
        folder: the directory that relative paths start from; None for the working directory.

    Raises:
        ConfigError: one line for each wrong key, naming the key, its value and what is allowed.
    """
    config = _with_absolute_paths(checked(Config, values), folder or Path.cwd())
    _check_scheduler(config.scheduler, config.trainer.epochs)
    if urlsplit(config.logger.uri or "").password:
        raise ConfigError(
            "logger.uri: a password in it would be written into run folders; give it as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return config


_KINDS_WITH_ROOT = ("fashion_mnist", "mnist", "kmnist", "emnist", "cifar10", "cifar100")


def default_root() -> str:
    """Return the data's folder where `data.root` names none."""
    return os.environ.get(DATA_VARIABLE) or DATA_FOLDER


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    root = config.data.root
    if root is None and config.data.kind in _KINDS_WITH_ROOT:
        root = default_root()
    given = {"root": root, "path": config.data.path}
    paths = {key: absolute(path, folder) for key, path in given.items() if path}
    changed: dict[str, Section] = {"data": config.data.model_copy(update=paths)}
    weights, uri = config.model.weights, config.logger.uri
    if weights and weights not in ("none", "DEFAULT"):
        changed["model"] = config.model.model_copy(update={"weights": absolute(weights, folder)})
    if uri:
        changed["logger"] = config.logger.model_copy(update={"uri": absolute_url(uri, folder)})
    return config.model_copy(update=changed)


def _check_scheduler(scheduler: Section, epochs: int) -> None:
    """Refuse a schedule whose warm-up or first step lies beyond the end of the run."""
    if isinstance(scheduler, WarmupCosineConfig) and scheduler.warmup_epochs >= epochs:
        raise ConfigError(
            f"scheduler.warmup_epochs={scheduler.warmup_epochs:g}: must be less than "
            f"trainer.epochs={epochs}"
        )
    if isinstance(scheduler, StepConfig) and scheduler.every >= epochs:
        raise ConfigError(
            f"scheduler.every={scheduler.every}: must be less than trainer.epochs={epochs}, "
            "or the rate never changes; use scheduler=constant for that"
        )
    if isinstance(scheduler, PiecewiseConfig) and max(scheduler.changes, default=0) > epochs:
        raise ConfigError(
            f"scheduler.changes: the change at epoch {max(scheduler.changes)} must not lie beyond "
            f"trainer.epochs={epochs}"
        )


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some keys.

    Args:
        config: a checked configuration.
        values: the values by dotted key, such as `optimizer.lr`.

    Raises:
        ConfigError: a line for each key that does not exist or has a wrong value.
    """
    plain = config.model_dump(by_alias=True, exclude_unset=True)
    for key, value in values.items():
        put(plain, key, value)
    return checked(Config, plain)


def trusted_targets() -> tuple[str, ...]:
    """Return the patterns of names that `_target_` may have."""
    return (
        "fmnist_sweep.models.*",
        "torch.nn.modules.*",
        "torch.optim.*",
        *trusted_packages(),
    )
