"""What every `python -m` command has around it: streams that hold, mistakes in one line."""

import sys
from collections.abc import Callable

from fmnist_sweep.base import streams
from fmnist_sweep.base.errors import Error, describe, is_machine_fault


def run(
    main: Callable[[], object],
    explain: Callable[[Exception], str | None] = lambda error: None,
    interrupted: str = "Interrupted.",
) -> None:
    """Runs a command.

    Args:
        explain: the line for an error of another library, or None for a fault of ours, which is
            raised with its traceback.
        interrupted: what to say after Ctrl-C.

    Raises:
        SystemExit: 1 with one line on standard error for a user's mistake or the machine's fault,
            130 after Ctrl-C.
    """
    streams.make_forgiving()
    try:
        main()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except Error as error:
        sys.exit(str(error))
    except Exception as error:
        line = explain(error) or _of_a_file(error)
        if line is None:
            raise
        sys.exit(line)


def _of_a_file(error: Exception) -> str | None:
    """What to say of a file or a disk that refuses; None for any other error."""
    if is_machine_fault(error):
        return f"{describe(error)}; what has finished is kept"
    return describe(error) if isinstance(error, OSError) and error.filename else None
