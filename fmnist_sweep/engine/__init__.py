"""Trains a stack of trials; knows neither Hydra nor Optuna."""
