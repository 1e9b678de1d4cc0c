"""What a run may be told: the type and range of every key. The defaults live in `conf/`."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

TRAIN_IMAGES = 60_000
TEST_IMAGES = 10_000
CLASSES = 10


def conf_folder() -> str:
    """Where the configuration files are: inside the installed package, or beside it."""
    package = Path(__file__).parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


class ConfigError(Exception):
    """A user's mistake; its message is the line that the user reads."""


class Section(BaseModel):
    """Strict: no string for a number, no unknown key, nothing changed later."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


class _Target(Section):
    """A class by its dotted name and its arguments; the class itself judges keys not named here."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_", min_length=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the configuration says for the class, without keys it does not mention."""
        return self.model_dump(exclude_unset=True, exclude={"target", "decay"})


# Keys below default to None only so that a class without them can be named: what the
# configuration does not mention is never passed on.
class ModelConfig(_Target):
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


class ConstantConfig(Section):
    kind: Literal["constant"]


class CosineConfig(Section):
    kind: Literal["cosine"]
    per: Literal["step", "epoch"]
    final: float = Field(ge=0, le=1)


class WarmupCosineConfig(Section):
    kind: Literal["warmup_cosine"]
    per: Literal["step", "epoch"]
    warmup_epochs: float = Field(ge=0)
    start: float = Field(ge=0, le=1)
    final: float = Field(ge=0, le=1)


class OneCycleConfig(Section):
    kind: Literal["onecycle"]
    per: Literal["step", "epoch"]
    warmup_share: float = Field(ge=0, lt=1)
    start: float = Field(ge=0, le=1)
    final: float = Field(ge=0, le=1)


class StepConfig(Section):
    kind: Literal["step"]
    every: int = Field(ge=1)
    factor: float = Field(gt=0, le=1)


class PlateauConfig(Section):
    kind: Literal["plateau"]
    metric: Literal["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    factor: float = Field(gt=0, lt=1)
    patience: int = Field(ge=0)
    min_change: float = Field(ge=0)
    final: float = Field(ge=0, le=1)


_Scheduler = (
    ConstantConfig | CosineConfig | WarmupCosineConfig | OneCycleConfig | StepConfig | PlateauConfig
)
_SCHEDULERS: dict[Any, type[Section]] = {
    "constant": ConstantConfig,
    "cosine": CosineConfig,
    "warmup_cosine": WarmupCosineConfig,
    "onecycle": OneCycleConfig,
    "step": StepConfig,
    "plateau": PlateauConfig,
}


def parse_scheduler(values: Any) -> Any:
    """Checks against the one schema that `kind` names: its errors then speak of no other."""
    if isinstance(values, Section):
        return values
    kind = values.get("kind") if isinstance(values, Mapping) else values
    if kind not in _SCHEDULERS:
        raise ConfigError(f"scheduler.kind={kind}: must be one of {', '.join(_SCHEDULERS)}")
    return checked(_SCHEDULERS[kind], values, "scheduler.")


SchedulerConfig = Annotated[_Scheduler, BeforeValidator(parse_scheduler)]


def _classes(values: Any) -> tuple[int, ...]:
    """A list of classes in order, as a tuple: what is read by it is kept by it."""
    whole = isinstance(values, list | tuple) and all(type(value) is int for value in values)
    if not whole or len({*values}) < max(2, len(values)) or not {*values} <= {*range(CLASSES)}:
        raise ValueError
    return tuple(sorted(values))


class DataConfig(Section):
    root: str = Field(min_length=1)
    verify: bool
    validation: Literal["held_out", "test", "train"]
    val_size: int = Field(ge=10, lt=TRAIN_IMAGES)
    train_size: Annotated[int, Field(ge=10, le=TRAIN_IMAGES)] | None
    classes: Annotated[tuple[int, ...], BeforeValidator(_classes)] | None
    split_seed: int = Field(ge=0)
    batch_size: int = Field(ge=1, le=TRAIN_IMAGES)

    @property
    def available(self) -> int:
        """Images left to train on."""
        held_out = self.val_size if self.validation == "held_out" else 0
        if self.classes is None:
            return TRAIN_IMAGES - held_out
        # Of a size that ten do not divide, the first classes give one image more.
        each, more = divmod(held_out, CLASSES)
        left = TRAIN_IMAGES // CLASSES - each
        return sum(left - (one < more) for one in self.classes)


class AugmentConfig(Section):
    flip: float = Field(ge=0, le=1)
    rotate: float = Field(ge=0, le=180)
    shift: int = Field(ge=0, lt=28)
    crop: float = Field(gt=0, le=1)
    erase: float = Field(ge=0, le=1)
    erase_size: float = Field(gt=0, le=1)


class EarlyStoppingConfig(Section):
    patience: Annotated[int, Field(ge=1)] | None
    min_change: float = Field(ge=0)
    metric: Literal["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


class TrainerConfig(Section):
    epochs: int = Field(ge=1)
    label_smoothing: float = Field(ge=0, lt=1)
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
    kind: Literal["none", "tensorboard", "mlflow"]
    uri: str | None


class Config(Section):
    """One trial's whole configuration."""

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
        """As text, all that a result depends on."""
        return self.model_dump_json(
            exclude={
                "name": True,
                "logger": True,
                "data": {"root", "verify"},
                "trainer": {"log_every", "checkpoint"},
            }
        )


def checked(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Checks plain values against a schema; `prefix`, with its dot, stands before every key.

    Raises:
        ConfigError: one line for each wrong key, naming the key, its value and what is allowed.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_line(section, prefix, detail) for detail in error.errors())
        raise ConfigError("\n".join(lines)) from None


def parse(values: Mapping[str, Any]) -> Config:
    """Checks a composed configuration (plain containers, interpolations resolved).

    Raises:
        ConfigError: one line for each wrong key, naming the key, its value and what is allowed.
    """
    config = checked(Config, values)
    if config.data.train_size is not None and config.data.train_size > config.data.available:
        classes = config.data.classes
        images, which = TRAIN_IMAGES, ""
        if classes is not None:
            images = TRAIN_IMAGES // CLASSES * len(classes)
            which = f" of data.classes={list(classes)}"
        raise ConfigError(
            f"data.train_size={config.data.train_size}: must be at most {config.data.available}, "
            f"what data.val_size={config.data.val_size} leaves of {images} training images{which}"
        )
    _check_scheduler(config.scheduler, config.trainer.epochs)
    if urlsplit(config.logger.uri or "").password:
        raise ConfigError(
            "logger.uri: a password in it would be written into run folders; give it as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return config


def _check_scheduler(scheduler: _Scheduler, epochs: int) -> None:
    """Refuses a schedule that the run ends before."""
    if isinstance(scheduler, WarmupCosineConfig) and scheduler.warmup_epochs >= epochs:
        raise ConfigError(
            f"scheduler.warmup_epochs={scheduler.warmup_epochs:g}: must be less than "
            f"trainer.epochs={epochs}"
        )
    if isinstance(scheduler, StepConfig) and scheduler.every >= epochs:
        raise ConfigError(
            f"scheduler.every={scheduler.every}: must be less than trainer.epochs={epochs}, "
            "or no step is ever taken; scheduler=constant is that"
        )


def trusted_targets() -> tuple[str, ...]:
    """Names that `_target_` may take.

    A package of your own is added by the environment variable FMNIST_SWEEP_TRUST, a comma
    separated list of patterns such as `mypackage.*`. No file and no override can add to it.
    """
    own = os.environ.get("FMNIST_SWEEP_TRUST", "")
    extra = tuple(pattern.strip() for pattern in own.split(",") if pattern.strip())
    return ("fmnist_sweep.models.*", "torch.nn.modules.*", "torch.optim.*", *extra)


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys that the schema knows."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{key}.")


def nearest_key(key: str) -> str:
    """A hint such as `; did you mean optimizer.lr?`, or nothing where no known key is close."""
    close = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


_MEANINGS = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "missing": "is missing",
}


def _line(section: type[BaseModel], prefix: str, detail: ErrorDetails) -> str:
    """Turns one of pydantic's errors into `key=value: what is allowed`."""
    # A union adds its member's name to the path ("model.hidden.list[...]"): not a key of ours.
    # Nor are a list's positions.
    path = [str(part) for part in detail["loc"] if str(part).isidentifier()]
    if path[-1] in ("bool", "int", "float", "str"):
        path.pop()
    allowed = _range(section, path)
    key = prefix + ".".join(path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"{key}: no such key{nearest_key(key)}"
    if kind == "missing":
        return f"{key}: is missing"
    said = detail["msg"].removeprefix("Input ").replace("should", "must", 1)
    meaning = _SPECIAL.get(key) or _MEANINGS.get(kind, said)
    if kind in _RANGE_ERRORS and allowed:
        return f"{key}={detail['input']}: must be {allowed}"
    return f"{key}={detail['input']}: {meaning}{f' {allowed}' if allowed else ''}"


_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
# Where the type's own error would not say what is allowed.
_SPECIAL = {
    "trainer.device": "must be auto, cpu, cuda, cuda:N or mps",
    "trainer.compile": "must be auto, true or false",
    "trainer.checkpoint": "must be auto, true or false",
    "data.classes": "must be a list of two or more different classes of 0 to 9, or null for all",
    "name": "must be letters, digits and . _ + -, beginning with a letter or digit",
}


def _range(section: type[BaseModel], path: Sequence[str]) -> str:
    """The allowed range of a numeric key, read from the schema: `>= 0 and < 1`."""
    field = None
    for part in path:
        field = section.model_fields.get(part)
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
    assert field is not None
    bounds = {type(m).__name__: m for m in _metadata(field.metadata, field.annotation)}
    signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
    parts = [f"{sign} {getattr(bounds[n], n.lower())}" for n, sign in signs.items() if n in bounds]
    return " and ".join(parts)


def _metadata(own: list[Any], annotation: Any) -> list[Any]:
    """A field's constraints, also where they sit inside `Annotated[...] | None`."""
    inner = [m for member in getattr(annotation, "__args__", ()) for m in _constraints(member)]
    return [c for m in (*own, *inner) for c in (getattr(m, "metadata", None) or [m])]


def _constraints(member: Any) -> tuple[Any, ...]:
    return getattr(member, "__metadata__", ())
