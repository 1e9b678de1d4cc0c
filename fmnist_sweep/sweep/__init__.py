"""Hydra sweeper over an Optuna study, for any application.

    from fmnist_sweep.sweep import report

    report(step, val_loss=0.31, accuracy=0.91)   # a curve and pruning; no effect outside a sweep

Importing this package is cheap: it imports neither torch nor optuna.
"""

from fmnist_sweep.sweep.task import Task, report, sweeps

__all__ = ["Task", "report", "sweeps"]
