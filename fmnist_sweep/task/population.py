"""Population-based training in stacks: a copy of a trial's state, and a trial with other values.

`pbt.Pbt` decides who copies whom. Trials wait for one another before each exchange, so that the
result does not depend on the number of workers. After an exchange the whole population may be saved
in one file, from which an interrupted sweep resumes all its trials.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fmnist_sweep.base.errors import MachineFault
from fmnist_sweep.engine import checkpoint
from fmnist_sweep.engine.checkpoint import Checkpoint, CheckpointError, State
from fmnist_sweep.engine.settings import PiecewiseConfig
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.results import lineage, record
from fmnist_sweep.results.lineage import Descent
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.pbt import Population
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config, with_values
from fmnist_sweep.task.trial import Training, checkpoint_interval

log = logging.getLogger(__name__)

FILE = "population.pt"


@dataclass
class _Member:
    """A trial of the population.

    training: its training, of a single repeat.
    values: its values by key, since the last exchange.
    row: its last epoch.
    """

    training: Training
    values: Mapping[str, float]
    row: Epoch | None = None

    @property
    def is_training(self) -> bool:
        return not (self.training.jobs[0].ended or self.training.jobs[0].stop)


class PopulationTraining:
    """The training of a population.

    Args:
        population: the population.
        config: the configuration of the trials, without the searched values.
    """

    def __init__(self, population: Population, config: Config) -> None:
        self.pbt, self.folder, self.space = population.pbt, population.folder, population.space
        self.objective, self.n_trials = population.objective, population.n_trials
        self.sign = 1 if population.direction == "maximize" else -1
        self.seed = config.seed
        self.epochs = config.trainer.epochs
        self.members: dict[int, _Member] = {}
        self.rows: list[Descent] = []
        self.states: dict[int, State] = {}
        seconds = checkpoint_interval(config)
        self.file = Checkpoint(self.folder / FILE, config.identity, seconds)
        self._read_file()

    def _read_file(self) -> None:
        try:
            saved = checkpoint.read(self.file.path, self.file.configuration)
        except FileNotFoundError:
            return
        except (CheckpointError, OSError) as error:
            log.warning("%s %s; the population begins anew", self.file.path, error)
            return
        self.states = saved["states"]
        self.rows = [Descent(**row) for row in saved["lineage"]]

    def add(self, number: int, training: Training) -> None:
        """Add a trial whose training is prepared."""
        job = training.jobs[0]
        own = [row for row in self.rows if row.trial == number]
        if not own:
            params = record.read_json(training.folder, "trial.json")["params"]
            own = [Descent(0, number, None, {key: params[key] for key in self.space})]
            self.rows += own
            lineage.write(self.folder, self.rows)
        self.members[number] = _Member(training, own[-1].values)
        if number in self.states:
            job.state = self.states[number]
            job.trial = self._trial(number)
        if len(self.members) == 1:
            size = sum(p.nbytes for p in job.trial.model.parameters())
            self.file.begin(3 * size * self.n_trials)

    def _trial(self, number: int) -> Trial:
        """Build a trial with the values that it has had, by way of its ancestors."""
        training = self.members[number].training
        beginning, *changes = sorted(lineage.schedule(self.rows, number).items())
        config = with_values(training.config, beginning[1]).model_copy(
            update={"scheduler": PiecewiseConfig(kind="piecewise", changes=dict(changes))}
        )
        trial = build.build(config, training.data.format, len(training.data.train))
        return replace(trial, seed=training.config.seed)

    def epoch_ended(self, number: int, row: Epoch) -> None:
        """Take a trial's epoch; the trial waits if an exchange is due."""
        member = self.members[number]
        member.row = row
        member.training.jobs[0].hold = self.pbt.exchanges_after(row.epoch, self.epochs)

    def exchange_when_due(self, scheduler: JobScheduler) -> None:
        """Let trials copy from one another once all of them wait.

        Raises:
            MachineFault: trials wait for others that no worker trains.
        """
        training = {n: member for n, member in self.members.items() if member.is_training}
        waiting = [member for member in training.values() if member.training.jobs[0].hold]
        if not waiting:
            return
        if len(waiting) < len(training):
            if not scheduler.is_training:
                raise MachineFault(
                    f"{len(waiting)} of {len(training)} trials of the population train side by "
                    "side: a worker has died, or memory holds no more"
                )
            return
        self._exchange(training, scheduler)
        for member in waiting:
            member.training.jobs[0].hold = False

    def _exchange(self, members: Mapping[int, _Member], scheduler: JobScheduler) -> None:
        rows = {number: member.row for number, member in members.items() if member.row}
        epoch = next(iter(rows.values())).epoch
        copies = self.pbt.exchange(
            {number: self.sign * getattr(row, self.objective) for number, row in rows.items()},
            {number: member.values for number, member in members.items()},
            self.space,
            np.random.default_rng([self.seed, epoch]),
        )
        for target, source, values in copies:
            self.rows.append(Descent(epoch, target, source, values))
            members[target].values = values
            to = members[target].training.jobs[0]
            scheduler.copy(members[source].training.jobs[0], to, self._trial(target))
        lineage.write(self.folder, self.rows)
        # No trial may end before all that is needed to repeat the exchanges is on record.
        is_last = epoch + self.pbt.interval >= self.epochs
        if self.file.is_due or (is_last and self.file.seconds < math.inf):
            self._save(members, scheduler)

    def _save(self, members: Mapping[int, _Member], scheduler: JobScheduler) -> None:
        states = {n: scheduler.state(member.training.jobs[0]) for n, member in members.items()}
        rows = [row._asdict() for row in self.rows]
        try:
            self.file.write({"states": states, "lineage": rows})
        except OSError as error:
            log.warning("%s: %s; the population continues", self.file.path, error.strerror)

    def close(self) -> None:
        """Remove the file of a population whose trials have all ended."""
        jobs = [member.training.jobs[0] for member in self.members.values()]
        if jobs and all(job.ended and not job.pause for job in jobs):
            self.file.path.unlink(missing_ok=True)
