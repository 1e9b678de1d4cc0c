"""Hyperparameter sweeps around an MLP baseline on Fashion-MNIST."""
