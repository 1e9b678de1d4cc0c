"""Values as the text of Hydra's overrides, and back."""

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

# What Hydra reads as the text that it is, unless it is one of `_OTHERS`.
_PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*", re.ASCII)
_OTHERS = {"null", "true", "false", "inf", "nan"}


def override_text(value: Any) -> str:
    """A value as an override has it after its `=`: Hydra reads it as the same value.

    Args:
        value: None, a bool, number or text, or lists and mappings of such. No text is an
            interpolation.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _OTHERS:
            return value
        escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        return str(QuotedString(escaped, Quote.single).with_quotes())
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{override_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(override_text, value)) + "]"
    return repr(value)


def plain(value: Any) -> Any:
    """A parsed value without Hydra's marks of quotes."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def holds_interpolation(value: Any) -> bool:
    """Whether a parsed value has `${` in a text, which stands for something else then."""
    if isinstance(value, dict):
        return any(map(holds_interpolation, value.values()))
    if isinstance(value, list):
        return any(map(holds_interpolation, value))
    return isinstance(value, str) and "${" in value
