"""Training of a stack of trials; independent of Hydra and Optuna."""
