"""Schemas of configuration sections, whose errors name the key, its value and what is allowed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fmnist_sweep.base.errors import ConfigError, nearest_key


class Section(BaseModel):
    """A section of the configuration.

    It is strict: text is no number, unknown keys are refused, and values never change.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def checked(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Check plain values against a schema and return the section that they make.

    Args:
        section: the schema.
        values: the section's values as plain containers.
        prefix: the text before every key in an error, with its final dot, such as `augment.`.

    Raises:
        ConfigError: one line for each wrong key, naming the key, its value and what is allowed.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_error_line(section, prefix, detail) for detail in error.errors())
        raise ConfigError("\n".join(lines)) from None


def known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a schema, sections before the keys within them."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{key}.")


_MEANINGS = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
}
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
# Keys for which pydantic's message would not say what is allowed.
_MEANINGS_OF_KEYS = {
    "trainer.device": "must be auto, cpu, cuda, cuda:N or mps",
    "trainer.compile": "must be auto, true or false",
    "trainer.checkpoint": "must be auto, true or false",
    "data.classes": "must be a list of two or more different classes, or null for all",
    "scheduler.changes": "must be epochs from 2 on, each with numbers by key, such as "
    "{4: {optimizer.lr: 0.0003}}",
    "name": "must be text of letters, digits and . _ + -, beginning with a letter or digit; a "
    "number in quotes, name=\"'7'\"",
}


def _error_line(section: type[BaseModel], prefix: str, detail: ErrorDetails) -> str:
    """Return one of pydantic's errors as `key=value: what is allowed`."""
    error_type = detail["type"]
    if error_type == "extra_forbidden":
        key = prefix + ".".join(map(str, detail["loc"]))
        return _in_a_line(f"{key}: no such key{nearest_key(key, known_keys(section, prefix))}")
    # pydantic's path has parts that belong to no key: names of a union's members
    # ("model.hidden.list[...]") and positions in a list.
    path = [str(part) for part in detail["loc"] if str(part).isidentifier()]
    if path[-1] in ("bool", "int", "float", "str"):
        path.pop()
    allowed = _allowed_range(section, path)
    key = prefix + ".".join(path)
    if error_type == "missing":
        return f"{key}: is missing"
    message = detail["msg"].removeprefix("Input ").replace("should", "must", 1)
    if key in _MEANINGS_OF_KEYS:
        return f"{key}={detail['input']}: {_MEANINGS_OF_KEYS[key]}"
    meaning = _MEANINGS.get(error_type, message)
    if error_type in _RANGE_ERRORS and allowed:
        return f"{key}={detail['input']}: must be {allowed}"
    return _in_a_line(f"{key}={detail['input']}: {meaning}{f' {allowed}' if allowed else ''}")


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def _allowed_range(section: type[BaseModel], path: Sequence[str]) -> str:
    """Return the range of a numeric key as text, such as `>= 0 and < 1`; "" if it has none."""
    field = None
    for part in path:
        field = section.model_fields.get(part)
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
    assert field is not None
    bounds = {type(c).__name__: c for c in _constraints(field.metadata, field.annotation)}
    signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
    parts = [f"{sign} {getattr(bounds[n], n.lower())}" for n, sign in signs.items() if n in bounds]
    return " and ".join(parts)


def _constraints(own: list[Any], annotation: Any) -> list[Any]:
    """Return a field's constraints, including those inside `Annotated[...] | None`."""
    members = getattr(annotation, "__args__", ())
    inner = [m for member in members for m in getattr(member, "__metadata__", ())]
    return [c for m in (*own, *inner) for c in (getattr(m, "metadata", None) or [m])]


def trusted_packages() -> tuple[str, ...]:
    """Return the patterns of FMNIST_SWEEP_TRUST: more names that may be instantiated.

    The environment variable is a comma-separated list such as `mypackage.*`. No file and no
    override can add to it.
    """
    patterns = os.environ.get("FMNIST_SWEEP_TRUST", "").split(",")
    return tuple(pattern.strip() for pattern in patterns if pattern.strip())
