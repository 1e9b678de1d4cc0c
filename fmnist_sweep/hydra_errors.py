"""Hydra's and OmegaConf's errors as the lines that a user reads."""

import re
from collections.abc import Iterable

from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep.base.errors import nearest_key


def hydra_line(error: BaseException, known: Iterable[str] = ()) -> str:
    """An error of Hydra's or OmegaConf's in one line, with the nearest key for an unknown one.

    Args:
        known: keys that exist in some configuration of the application.
    """
    cause = error.__cause__
    text = f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and re.search(r"not in (struct|'\w+')", text):
        key = getattr(cause, "full_key", None) or unknown[1]
        section, siblings = key.rpartition(".")[0], getattr(cause, "parent_node", None) or ()
        beside = [f"{section}.{name}".lstrip(".") for name in siblings]
        known = set(known)
        if key in known:  # but of another option of its group, as a ResNet has no dropout
            names = ", ".join(str(name) for name in siblings if name != "_target_")
            return f"{key}: not with this {section}, which has {names}"
        return f"{key}: no such key{nearest_key(key, [*sorted(known), *beside])}"
    text = text.partition("Config search path:")[0]
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("object_type", "full")))
