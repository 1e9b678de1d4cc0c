"""Every error that this package raises, and how an error becomes the line that a user reads.

Error                    its message is the whole line; the commands show no traceback for it
├── ConfigError          a key, value or argument that is not allowed
├── RecordError          a file of a run or a sweep that is torn, or somebody else's
├── ReportError          a folder that holds no sweep
├── CompareError         sweeps that cannot be compared
├── TrialFailed          a trial that ended without a usable result
│   └── ImpossibleTrial  its values do not go together: nothing was run
├── TooManyFailures      `hydra.sweeper.max_failures` was reached, or a launcher starts nothing
├── ProcessDied          a process ended before its work did
└── MachineFault         the machine is to blame, not the trial, which a sweep runs again
    └── DataError        the data set cannot be had or cannot be trusted
StopSweep                ends a sweep as an interruption does, past `except Exception`
└── StorageUnavailable   the study's database stays away
"""

import difflib
import errno
import re
from collections.abc import Iterable

from omegaconf.errors import OmegaConfBaseException


class Error(Exception):
    """An error that is told to the user as its message alone."""


class ConfigError(Error):
    """A key, value or argument that is not allowed; a line for each."""


class RecordError(Error, ValueError):
    """A file of a run or a sweep that is torn, or somebody else's."""


class ReportError(Error):
    """A folder that holds no sweep."""


class CompareError(Error):
    """Sweeps, or tables of sweeps, that cannot be compared."""


class TrialFailed(Error):
    """A trial that ended without a usable result."""


class ImpossibleTrial(TrialFailed):
    """A trial whose values do not go together, found before anything of it was run."""


class TooManyFailures(Error):
    """`hydra.sweeper.max_failures` was reached, or a launcher starts nothing."""


class ProcessDied(Error):
    """A process has ended before its work did; the message says how."""


class MachineFault(Error):
    """The machine is to blame and not the trial, as when no process can be started."""


class DataError(MachineFault):
    """The data set cannot be had or cannot be trusted."""


class StopSweep(KeyboardInterrupt):
    """Ends a sweep for a fault of the machine; what has finished is in the run folders.

    No `Exception`: Hydra would take it for the task's and go on.
    """


class StorageUnavailable(StopSweep):
    """The study's database did not answer for minutes."""


# Of a disk (full, over quota, read-only, broken, its server gone) and of open files (too many).
_MACHINE_ERRNOS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "EMFILE", "ENFILE")
    if hasattr(errno, name)
)


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine is to blame for an error, so that the same work may succeed later."""
    if isinstance(error, OSError):
        return error.errno in _MACHINE_ERRNOS
    return isinstance(error, MachineFault)


def one_line(error: BaseException) -> str:
    """The whole message in one line; the name of its class where there is none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of a message, as of an error that explains itself at length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(error: BaseException) -> str:
    """One line for a log, a table or a user: ours as they are, others with their class."""
    if isinstance(error, Error):
        return one_line(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})" if error.code else "sys.exit"
    text = one_line(error)
    name = type(error).__name__
    return text if text == name else f"{name}: {text}"


def nearest_key(key: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean optimizer.lr?`, or nothing where no known key is close."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


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
