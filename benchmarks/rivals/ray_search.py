"""Ray Tune with OptunaSearch and ASHA: two trials at once in two actors that are used again.

`python -m benchmarks.rivals.ray_search DATA LOG SEED GRACE REDUCTION`, until it is killed. What Ray
can leave out is left out: the dashboard, log files of trials, checkpoints and its progress tables.
"""

import os
import sys
from pathlib import Path
from typing import Any

import ray
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.rivals.loop import DEFAULTS, EPOCHS, Task, Training, suggest

WORKERS = 2


class Trial(tune.Trainable):
    """A trial of the search; a step is an epoch."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        """Begin the first trial of a process; `shared` has the `Task`."""
        self.task: Task = shared["task"]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process, whose examples are in memory."""
        self.training = Training(self.task, **new_config)
        return True

    def step(self) -> dict[str, float]:
        return {"val_accuracy": self.training.epoch()}


def main(data: str, log: str, seed: str, grace: str, reduction: str) -> None:
    """Search without end.

    Args:
        data: the file of the examples.
        log: the file of the log.
        seed: the seed of the sampler and of all trainings.
        grace: ASHA's `grace_period`, epochs.
        reduction: ASHA's `reduction_factor`.
    """
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    }
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    goal: Any = {"metric": "val_accuracy", "mode": "max"}
    trial = tune.with_parameters(Trial, task=Task(data, log, int(seed)))
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            **goal,
            search_alg=OptunaSearch(
                suggest_for_ray,
                **goal,
                sampler=TPESampler(seed=int(seed)),
                points_to_evaluate=[DEFAULTS],
            ),
            scheduler=ASHAScheduler(
                max_t=EPOCHS, grace_period=int(grace), reduction_factor=int(reduction)
            ),
            num_samples=-1,
            max_concurrent_trials=WORKERS,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(Path(log).parent.absolute()), verbose=0),
    )
    tuner.fit()


def suggest_for_ray(trial: Any) -> None:
    """Draw a configuration; Ray notes what is drawn."""
    suggest(trial)


if __name__ == "__main__":
    main(*sys.argv[1:])
