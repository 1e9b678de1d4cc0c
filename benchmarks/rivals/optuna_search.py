"""Optuna alone: two processes on one study, TPE, 50 epochs a trial, and a pruner.

`python -m benchmarks.rivals.optuna_search DATA LOG SEED PRUNER`, until it is killed. The processes
share a journal file, the storage that Optuna's documentation recommends for processes of a host.
"""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.rivals.loop import DEFAULTS, EPOCHS, Task, Training, suggest

WORKERS = 2
# The settings of `hydra/sweeper/pruner=median`, and for successive halving those of Ray's ASHA.
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(2, EPOCHS, 3),
}


def main(data: str, log: str, seed: str, pruner: str) -> None:
    """Search without end, in this process and in others.

    Args:
        data: the file of the examples.
        log: the file of the log; the journal lies beside it.
        seed: the seed of all trainings; the samplers' seeds derive from it.
        pruner: a name of `PRUNERS`.
    """
    task = Task(data, log, int(seed))
    study = optuna.create_study(storage=_storage(task), study_name="search", direction="maximize")
    study.enqueue_trial(DEFAULTS)
    context = multiprocessing.get_context("spawn")
    for worker in range(1, WORKERS):
        context.Process(target=work, args=(task, pruner, worker), daemon=True).start()
    work(task, pruner, 0)


def work(task: Task, pruner: str, worker: int) -> None:
    """Run trials of the study without end.

    Args:
        task: what all trials share.
        pruner: a name of `PRUNERS`.
        worker: the number of the process, from 0.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=task.seed * WORKERS + worker)
    study = optuna.load_study(
        study_name="search", storage=_storage(task), sampler=sampler, pruner=PRUNERS[pruner]()
    )

    def objective(trial: optuna.Trial) -> float:
        training = Training(task, **suggest(trial))
        for epoch in range(1, EPOCHS + 1):
            trial.report(training.epoch(), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return training.best

    study.optimize(objective)


def _storage(task: Task) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(Path(task.log).with_name("journal.log"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
