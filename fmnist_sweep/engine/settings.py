"""Training settings for the engine: schedules, early stopping, augmentation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.schema import Section, checked
from fmnist_sweep.results.metrics import EpochMetric

# Modules of the workers' fork server.
WORKER_MODULES = ("fmnist_sweep.engine.workers",)


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
    metric: EpochMetric
    factor: float = Field(gt=0, lt=1)
    patience: int = Field(ge=0)
    min_change: float = Field(ge=0)
    final: float = Field(ge=0, le=1)


class PiecewiseConfig(Section):
    """New values of keys from an epoch on; each stays until its next change."""

    kind: Literal["piecewise"]
    changes: Annotated[
        dict[Annotated[int, Field(ge=2)], dict[str, int | float]],
        BeforeValidator(lambda value: value or {}),
    ]


_Scheduler = (
    ConstantConfig
    | CosineConfig
    | WarmupCosineConfig
    | OneCycleConfig
    | StepConfig
    | PlateauConfig
    | PiecewiseConfig
)


_SCHEDULERS: dict[Any, type[Section]] = {
    "constant": ConstantConfig,
    "cosine": CosineConfig,
    "warmup_cosine": WarmupCosineConfig,
    "onecycle": OneCycleConfig,
    "step": StepConfig,
    "plateau": PlateauConfig,
    "piecewise": PiecewiseConfig,
}


def parse_scheduler(values: Any) -> Any:
    """Check the settings of a schedule against the schema that `kind` names.

    Errors then concern this schema alone, not the other schedules.

    Args:
        values: a mapping with the key "kind", or settings that have been checked already.

    Raises:
        ConfigError: no schedule has this kind, or the settings do not match its schema.
    """
    if isinstance(values, Section):
        return values
    kind = values.get("kind") if isinstance(values, Mapping) else values
    if kind not in _SCHEDULERS:
        raise ConfigError(f"scheduler.kind={kind}: must be one of {', '.join(_SCHEDULERS)}")
    return checked(_SCHEDULERS[kind], values, "scheduler.")


SchedulerConfig = Annotated[_Scheduler, BeforeValidator(parse_scheduler)]


class AugmentConfig(Section):
    flip: float = Field(ge=0, le=1)
    rotate: float = Field(ge=0, le=180)
    shift: int = Field(ge=0)
    crop: float = Field(gt=0, le=1)
    erase: float = Field(ge=0, le=1)
    erase_size: float = Field(gt=0, le=1)


class EarlyStoppingConfig(Section):
    patience: Annotated[int, Field(ge=1)] | None
    min_change: float = Field(ge=0)
    metric: EpochMetric
