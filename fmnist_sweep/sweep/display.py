"""Console output of a running sweep: a line per trial; on a terminal also a live status line."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fmnist_sweep.results.ranking import ranked
from fmnist_sweep.results.tables import Run

FEWEST_LETTERS = 3  # of a key that is shortened


class Display:
    """The trial counts of a sweep and their console output.

    Args:
        total: trials of the whole sweep.
        before: runs that had finished or been paused before this process began.
    """

    def __init__(self, console: Console, total: int, before: list[Run]) -> None:
        self.console = console
        self.total = total
        self.states = {run.trial: run.state for run in before}
        self.best = ranked(before)[0] if before else None
        self.running: dict[int, Path] = {}
        self.began = time.monotonic()
        self.finished_here = 0
        self.live = Live(
            console=console,
            get_renderable=lambda: Text(self.line(), no_wrap=True, overflow="ellipsis"),
            refresh_per_second=2,
            transient=True,
            # Each run logs to its train.log.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def started(self, trial: int, run: Path) -> None:
        """Add a launched trial with its run folder to the status line."""
        self.running[trial] = run

    def finished(self, run: Run) -> None:
        """Print a run that this process or another has completed or paused."""
        self.running.pop(run.trial, None)
        self.states[run.trial] = run.state
        self.finished_here += run.state != "PAUSED"
        self.best = ranked([run, self.best] if self.best else [run])[0]
        named = zip(run.objective, run.values)
        figures = [f"{name} {value:.4f}" for name, value in named if value is not None]
        if run.state == "PAUSED":
            figures = [str(run.summary.get("reason")), *figures]
        elif run.state != "COMPLETE":
            figures = [str(run.summary.get("reason"))]
        seconds = run.summary.get("seconds")
        if seconds is not None:
            figures.append(f"{seconds:.1f} s")
        line = f"[{self.done}/{self.total}] Trial {run.trial} {run.state}: {', '.join(figures)}; "
        room = self.console.width - len(line) if self.console.is_terminal else None
        self.console.print(line + label(run.params, room), soft_wrap=True)

    @property
    def done(self) -> int:
        """The number of trials that have ended."""
        return sum(state != "PAUSED" for state in self.states.values())

    def line(self) -> str:
        """Return the status line: what a narrow terminal cuts off comes last."""
        parts = [f"{self.done} of {self.total} trials"]
        if self.best and self.best.values and self.best.values[0] is not None:
            name, value = self.best.objective[0], self.best.values[0]
            parts.append(f"best {name} {value:.4f} (trial {self.best.trial})")
        if self.finished_here:
            seconds = (time.monotonic() - self.began) / self.finished_here
            parts.append(f"about {_duration(seconds * (self.total - self.done))} left")
        counts = Counter(state for trial, state in self.states.items() if trial not in self.running)
        for state in ("PAUSED", "PRUNED", "FAILED"):
            if counts[state]:
                parts.append(f"{counts[state]} {state.lower()}")
        running = [
            f"{trial} ({epochs} epochs)" if (epochs := _rows(run)) else str(trial)
            for trial, run in sorted(self.running.items())
        ]
        if running:
            parts.append("running " + ", ".join(running))
        return " | ".join(parts)


def label(params: Mapping[str, object], room: int | None = None) -> str:
    """Return swept values in one line, numbers with four digits.

    Args:
        params: the values by key.
        room: the number of characters. Where they are too few, keys lose their beginnings; values
            are whole in any case. None for no limit.
    """
    values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in params.values()]
    last = [key.rpartition(".")[2] for key in params]
    names = [list(params), *([last] if len({*last}) == len(last) else [])]
    for keys in names:
        text = " ".join(f"{key}={value}" for key, value in zip(keys, values))
        if room is None or len(text) <= room:
            return text
    longest = max(map(len, keys), default=0)
    while room is not None and len(text) > room and longest > FEWEST_LETTERS:
        longest -= 1
        cut = [key if len(key) <= longest else f"…{key[-longest + 1 :]}" for key in keys]
        text = " ".join(f"{key}={value}" for key, value in zip(cut, values))
    return text


def _rows(run: Path) -> int:
    """Return the number of epochs or steps that a run has on record."""
    try:
        return max(0, (run / "history.csv").read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
