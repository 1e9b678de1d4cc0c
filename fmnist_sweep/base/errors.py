"""The errors that this package raises, and the one-line messages made of any error.

Error                    the message is all that the user sees; commands print no traceback
├── ConfigError          a key, value or argument that is not allowed
├── RecordError          a file of a run or a sweep that is torn or not written by this package
├── ReportError          a folder that holds no sweep
├── CompareError         sweeps that cannot be compared
├── TrialFailed          a trial that ended without a usable result
│   └── ImpossibleTrial  a trial whose values contradict one another; nothing was run
├── TooManyFailures      `hydra.sweeper.max_failures` was reached, or a launcher starts no job
├── ProcessDied          a process ended before its work was done
└── MachineFault         the machine failed, not the trial; a sweep runs the trial again
    └── DataError        the data set is missing or cannot be trusted
StopSweep                ends a sweep like an interruption; `except Exception` does not catch it
└── StorageUnavailable   the study's database does not answer
"""

import difflib
import errno
import re
from collections.abc import Iterable


class Error(Exception):
    """An error whose message is all that the user sees."""


class ConfigError(Error):
    """A key, value or argument that is not allowed; the message has one line for each."""


class RecordError(Error, ValueError):
    """A file of a run or a sweep that is torn or not written by this package."""


class ReportError(Error):
    """A folder that holds no sweep."""


class CompareError(Error):
    """Sweeps, or tables of sweeps, that cannot be compared."""


class TrialFailed(Error):
    """A trial that ended without a usable result."""


class ImpossibleTrial(TrialFailed):
    """A trial whose values contradict one another, found before the trial was run."""


class TooManyFailures(Error):
    """`hydra.sweeper.max_failures` was reached, or a launcher starts no job."""


class ProcessDied(Error):
    """A process ended before its work was done; the message has its signal or exit code."""


class MachineFault(Error):
    """A failure of the machine, not of the trial: for example, no process can be started."""


class DataError(MachineFault):
    """The data set is missing or cannot be trusted."""


class StopSweep(KeyboardInterrupt):
    """Ends a sweep because the machine failed; finished trials stay in their run folders.

    It is not an `Exception`: Hydra would treat it as the task's own error and continue.
    """


class StorageUnavailable(StopSweep):
    """The study's database has not answered for minutes."""


# A disk that is full, over quota, read-only, broken or unreachable; too many open files.
_MACHINE_ERRNOS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "EMFILE", "ENFILE")
    if hasattr(errno, name)
)


def is_machine_fault(error: BaseException) -> bool:
    """Return whether the machine caused an error, so that the same work may succeed later."""
    if isinstance(error, OSError):
        return error.errno in _MACHINE_ERRNOS
    return isinstance(error, MachineFault)


def one_line(error: BaseException) -> str:
    """Return the whole message in one line, or the name of the class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the name of the class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(error: BaseException) -> str:
    """Return an error as one line for a log, a table or a user.

    An `Error` is its message. Other errors begin with the name of their class, or of the file that
    the operating system refused.
    """
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
    """Return a hint such as `; did you mean optimizer.lr?`, or "" if no known key is similar."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def hydra_line(error: BaseException, known: Iterable[str] = ()) -> str:
    """Return an error of Hydra or OmegaConf as one line; for an unknown key, suggest a similar key.

    Args:
        error: the error that Hydra or OmegaConf raised.
        known: the dotted keys that exist in any configuration of the application.
    """
    from omegaconf.errors import OmegaConfBaseException  # most commands run without it

    cause = error.__cause__
    text = f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and re.search(r"not in (struct|'\w+')", text):
        key = getattr(cause, "full_key", None) or unknown[1]
        section, siblings = key.rpartition(".")[0], getattr(cause, "parent_node", None) or ()
        sibling_keys = [f"{section}.{name}".lstrip(".") for name in siblings]
        known = set(known)
        if key in known:  # in another option of the group: a ResNet has no dropout
            names = ", ".join(str(name) for name in siblings if name != "_target_")
            return f"{key}: not with this {section}, which has {names}"
        return f"{key}: no such key{nearest_key(key, [*sorted(known), *sibling_keys])}"
    text = text.partition("Config search path:")[0]
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("object_type", "full")))
