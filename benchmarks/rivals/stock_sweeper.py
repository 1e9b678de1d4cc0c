"""Hydra's stock Optuna sweeper with the joblib launcher: two trials at once, none of them pruned.

`stock_sweeper.yaml` has the command. A process of joblib runs many trials and reads the examples
once.
"""

import hydra
from omegaconf import DictConfig

from benchmarks.rivals.loop import Task, Training


@hydra.main(version_base=None, config_path=".", config_name="stock_sweeper")
def main(config: DictConfig) -> float:
    """Train a trial and return the best accuracy of its epochs."""
    task = Task(config.data, config.log, config.seed)
    training = Training(task, config.lr, config.batch_size, config.width)
    for _ in range(config.epochs):
        training.epoch()
    return training.best


if __name__ == "__main__":
    main()
