"""Console output of a running sweep: a line per trial; on a terminal also a live status line."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fmnist_sweep.results.ranking import ranked
from fmnist_sweep.results.tables import Run


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
        self.running: set[int] = set()
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

    def started(self, trial: int) -> None:
        """Add a launched trial to the status line."""
        self.running.add(trial)

    def finished(self, run: Run) -> None:
        """Print a run that this process or another has completed or paused."""
        self.running.discard(run.trial)
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
        self.console.print(
            f"[{self.done}/{self.total}] Trial {run.trial} {run.state}: {', '.join(figures)}; "
            f"{run.label}",
            soft_wrap=True,
        )

    @property
    def done(self) -> int:
        """The number of trials that have ended."""
        return sum(state != "PAUSED" for state in self.states.values())

    def line(self) -> str:
        """Return the status line: counts, running trials, best value and estimated time left."""
        parts = [f"{self.done} of {self.total} trials"]
        if self.running:
            parts.append("running " + ", ".join(map(str, sorted(self.running))))
        counts = Counter(state for trial, state in self.states.items() if trial not in self.running)
        for state in ("PAUSED", "PRUNED", "FAILED"):
            if counts[state]:
                parts.append(f"{counts[state]} {state.lower()}")
        if self.best and self.best.state == "COMPLETE":
            value = self.best.values[0]
            parts.append(f"best {self.best.objective[0]} {value:.4f} (trial {self.best.trial})")
        if self.finished_here:
            seconds = (time.monotonic() - self.began) / self.finished_here
            parts.append(f"about {_duration(seconds * (self.total - self.done))} left")
        return " | ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
