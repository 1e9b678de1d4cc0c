"""Play a search against recorded learning curves: trials, a clock, and what is known when."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.simulation import table as curves_table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHANCE = 0.1  # the accuracy of guessing, before the first epoch of a search
CLOCKS = ("stacks", "alone")


@dataclass(frozen=True, eq=False)
class Curves:
    """Recorded learning curves.

    Attributes:
        params: learning rate, batch size and width [configurations, 3].
        seconds: of an epoch of each configuration [configurations].
        accuracy: validation accuracy in [0, 1] after each epoch [curves, epochs].
        config: each curve's configuration [curves].
        seed: each curve's training seed [curves].
    """

    params: Floats
    seconds: Floats
    accuracy: Floats
    config: Ints
    seed: Ints

    @property
    def epochs(self) -> int:
        """The length of the curves."""
        return int(self.accuracy.shape[1])

    def kind(self, config: int) -> tuple[int, int]:
        """Return a configuration's batch size and width, which share compiled steps."""
        return int(self.params[config, 1]), int(self.params[config, 2])

    def best(self) -> float:
        """Return the best accuracy of any epoch; of several seeds of a configuration, the mean."""
        return float(mean_by_config(self, self.accuracy.max(1)).max())


def mean_by_config(curves: Curves, values: Floats) -> Floats:
    """Return the mean over a configuration's curves of one value per curve [configurations]."""
    totals = np.bincount(curves.config, values, minlength=len(curves.params))
    counts: Floats = totals / np.bincount(curves.config, minlength=len(curves.params))
    return counts


def load(path: Path, clock: str, alone: Mapping[tuple[int, int], float] | None = None) -> Curves:
    """Read recorded curves.

    Args:
        path: the table that `curves_table.build` has written.
        clock: stacks, the sweep's median seconds of an epoch by batch size and width; or alone.
        alone: measured seconds of an epoch alone by batch size and width. A kind that was not
            measured gets its seconds in stacks times the measured kinds' median ratio.
    """
    table = curves_table.read(path)
    keys = list(curves_table.KEYS)
    wide = table.pivot(index=[*keys, "seed"], columns="epoch", values="val_accuracy")
    rows = wide.index.to_frame(index=False)
    params = rows[keys].drop_duplicates().reset_index(drop=True)
    places = {tuple(row): place for place, row in enumerate(params.to_numpy(float))}
    kinds = list(zip(params["batch_size"].astype(int), params["width"].astype(int)))
    in_stacks = table.groupby(curves_table.KIND)["seconds"].median().to_dict()
    seconds = [float(in_stacks[kind]) for kind in kinds]
    if clock == "alone":
        known = {kind: value for kind, value in (alone or {}).items() if kind in in_stacks}
        ratio = float(np.median([value / in_stacks[kind] for kind, value in known.items()]))
        seconds = [known.get(kind, ratio * value) for kind, value in zip(kinds, seconds)]
    return Curves(
        params=params.to_numpy(float),
        seconds=np.array(seconds),
        accuracy=wide.to_numpy(float),
        config=np.array([places[tuple(row)] for row in rows[keys].to_numpy(float)]),
        seed=rows["seed"].to_numpy(np.int64),
    )


@dataclass(eq=False)
class Trial:
    """A trial of a search.

    Attributes:
        config: its configuration, an index into `Curves.params`.
        curve: its curve, an index into `Curves.accuracy`.
        limit: the epochs after which it is complete.
        bests: the best accuracy until each epoch, later ones included [epochs].
        epochs: the epochs that it has trained.
        state: running, paused, complete, or stopped, which is for good.
    """

    config: int
    curve: int
    limit: int
    bests: Floats = field(repr=False)
    epochs: int = 0
    state: str = "running"

    @property
    def best(self) -> float:
        """The best accuracy so far; it has trained an epoch at least."""
        return float(self.bests[self.epochs - 1])


class Sampler(ABC):
    """Chooses configurations."""

    @abstractmethod
    def next(self, trials: Sequence[Trial]) -> tuple[int, int] | None:
        """Choose a configuration that no trial has.

        Args:
            trials: all trials so far.

        Returns:
            The configuration and its limit of epochs, or None if the table has no further one.
        """


@dataclass(frozen=True)
class Clock:
    """The costs of a search besides its epochs, in seconds.

    Attributes:
        workers: trials that train at once, each on its own core.
        start: of the command, before the first trial.
        begin: to begin a trial.
        resume: to continue a paused trial.
        compile: of steps for a batch size and width that none of the workers has trained before.
    """

    workers: int = 2
    start: float = 4.0
    begin: float = 0.3
    resume: float = 0.15
    compile: float = 0.0


class Search:
    """A search: its trials, and what it searches.

    Args:
        curves: the curves to draw from.
        sampler: chooses configurations.
        rng: chooses one of a configuration's curves.
        clock: what takes time besides epochs.
    """

    def __init__(
        self, curves: Curves, sampler: Sampler, rng: np.random.Generator, clock: Clock
    ) -> None:
        self.curves, self.sampler, self.rng, self.clock = curves, sampler, rng, clock
        self.trials: list[Trial] = []
        self.bests: Floats = np.maximum.accumulate(curves.accuracy, axis=1)

    def begin(self) -> Trial | None:
        """Add a trial; None if all configurations have been tried."""
        chosen = self.sampler.next(self.trials)
        if chosen is None:
            return None
        config, limit = chosen
        curve = int(self.rng.choice(np.flatnonzero(self.curves.config == config)))
        self.trials.append(Trial(config, curve, limit, self.bests[curve]))
        return self.trials[-1]


class Scheduler(ABC):
    """Gives epochs to trials.

    Args:
        search: the trials.
    """

    def __init__(self, search: Search) -> None:
        self.search = search

    @abstractmethod
    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Choose what a free worker trains.

        Args:
            current: the trial that the worker has just trained, now paused or complete; None for a
                worker that has none.

        Returns:
            A trial and the epoch until which to train it, or None to wait for the other workers.
        """


@dataclass(frozen=True)
class Play:
    """A search that has been played.

    Attributes:
        times: when the best accuracy of the search rose, ascending, in seconds.
        bests: the best accuracy from then on, of any epoch of any trial.
        trials: the number of trials begun.
        epochs: the number of epochs trained.
        ran_out: whether every configuration of the table has been tried.
    """

    times: list[float]
    bests: list[float]
    trials: int
    epochs: int
    ran_out: bool

    def best_at(self, times: Floats) -> Floats:
        """Return the best accuracy at times in seconds; before the first epoch, `CHANCE`."""
        steps = np.searchsorted(self.times, times, side="right")
        values: Floats = np.array([CHANCE, *self.bests])[steps]
        return values

    def seconds_to(self, accuracy: float) -> float:
        """Return when the search reached an accuracy, in seconds; infinite if it did not."""
        reached = (time for time, best in zip(self.times, self.bests) if best >= accuracy)
        return next(reached, float("inf"))


def play(scheduler: Scheduler, horizon: float) -> Play:
    """Play a search until its end or the horizon, whichever comes first.

    Args:
        scheduler: gives out the epochs; decisions take no time.
        horizon: in seconds, from the start of the command.
    """
    curves, clock = scheduler.search.curves, scheduler.search.clock
    compiled: set[tuple[int, int]] = set()
    # End of the next epoch, worker, trial, and the epoch until which it trains.
    running: list[tuple[float, int, Trial, int]] = []
    free: list[tuple[int, Trial | None]] = [(worker, None) for worker in range(clock.workers)]
    times: list[float] = []
    bests: list[float] = []
    now, epochs = clock.start, 0
    while True:
        asking, free = free, []
        for worker, current in asking:
            work = scheduler.next(current)
            if work is None:
                free.append((worker, None))
                continue
            trial, until = work
            delay = 0.0 if trial is current else clock.resume if trial.epochs else clock.begin
            if (kind := curves.kind(trial.config)) not in compiled:
                compiled.add(kind)
                delay += clock.compile
            trial.state = "running"
            heapq.heappush(
                running, (now + delay + curves.seconds[trial.config], worker, trial, until)
            )
        if not running or running[0][0] > horizon:
            break
        now, worker, trial, until = heapq.heappop(running)
        trial.epochs += 1
        epochs += 1
        if trial.best > max(bests, default=CHANCE):
            times.append(now)
            bests.append(trial.best)
        if trial.epochs < until:
            heapq.heappush(running, (now + curves.seconds[trial.config], worker, trial, until))
        else:
            trial.state = "complete" if trial.epochs == trial.limit else "paused"
            free.insert(0, (worker, trial))
    trials = scheduler.search.trials
    return Play(times, bests, len(trials), epochs, ran_out=len(trials) == len(curves.params))
