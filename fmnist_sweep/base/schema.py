"""A schema's errors as the lines that a user reads: the key, its value and what is allowed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fmnist_sweep.base.errors import ConfigError, nearest_key

_MEANINGS = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "missing": "is missing",
}
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
# Where the type's own error would not say what is allowed.
_SPECIAL = {
    "trainer.device": "must be auto, cpu, cuda, cuda:N or mps",
    "trainer.compile": "must be auto, true or false",
    "trainer.checkpoint": "must be auto, true or false",
    "data.classes": "must be a list of two or more different classes of 0 to 9, or null for all",
    "name": "must be text of letters, digits and . _ + -, beginning with a letter or digit; a "
    "number in quotes, name=\"'7'\"",
}


def known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys that a schema knows."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{key}.")


def _line(section: type[BaseModel], prefix: str, detail: ErrorDetails) -> str:
    """Turns one of pydantic's errors into `key=value: what is allowed`.

    Args:
        section: the schema that the error is of.
        prefix: with its dot, stands before every key.
    """
    kind = detail["type"]
    if kind == "extra_forbidden":
        key = prefix + ".".join(map(str, detail["loc"]))
        return _in_a_line(f"{key}: no such key{nearest_key(key, known_keys(section, prefix))}")
    # A union adds its member's name to the path ("model.hidden.list[...]"): not a key of ours.
    # Nor are a list's positions.
    path = [str(part) for part in detail["loc"] if str(part).isidentifier()]
    if path[-1] in ("bool", "int", "float", "str"):
        path.pop()
    allowed = _range(section, path)
    key = prefix + ".".join(path)
    if kind == "missing":
        return f"{key}: is missing"
    said = detail["msg"].removeprefix("Input ").replace("should", "must", 1)
    meaning = _SPECIAL.get(key) or _MEANINGS.get(kind, said)
    if kind in _RANGE_ERRORS and allowed:
        return f"{key}={detail['input']}: must be {allowed}"
    return _in_a_line(f"{key}={detail['input']}: {meaning}{f' {allowed}' if allowed else ''}")


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


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


class Section(BaseModel):
    """Strict: no string for a number, no unknown key, nothing changed later."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def checked(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Checks plain values against a schema; `prefix`, with its dot, stands before every key.

    Raises:
        ConfigError: one line for each wrong key, naming the key, its value and what is allowed.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_line(section, prefix, one) for one in error.errors())
        raise ConfigError("\n".join(lines)) from None


def trusted_packages() -> tuple[str, ...]:
    """What the environment variable FMNIST_SWEEP_TRUST adds to the names that are instantiated.

    It is a comma separated list of patterns such as `mypackage.*`. No file and no override can
    add to it.
    """
    patterns = os.environ.get("FMNIST_SWEEP_TRUST", "").split(",")
    return tuple(pattern.strip() for pattern in patterns if pattern.strip())
