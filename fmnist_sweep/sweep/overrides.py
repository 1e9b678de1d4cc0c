"""Convert values to the text of Hydra overrides, and parsed overrides to plain values."""

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

# Strings that Hydra parses as themselves without quotes, except those in `_KEYWORDS`.
_PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*", re.ASCII)
_KEYWORDS = {"null", "true", "false", "inf", "nan"}


def override_text(value: Any) -> str:
    """Return a value as the right-hand side of an override, which Hydra parses to the same value.

    Args:
        value: None, a bool, number or string, or lists and mappings of these. A `${` in a string
            is escaped, not interpolated.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _KEYWORDS:
            return value
        escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        return str(QuotedString(escaped, Quote.single).with_quotes())
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{override_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(override_text, value)) + "]"
    return repr(value)


def plain(value: Any) -> Any:
    """Return a parsed value without Hydra's quote markers."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def holds_interpolation(value: Any) -> bool:
    """Return whether a parsed value contains a string with an interpolation `${`."""
    if isinstance(value, dict):
        return any(map(holds_interpolation, value.values()))
    if isinstance(value, list):
        return any(map(holds_interpolation, value))
    return isinstance(value, str) and "${" in value
