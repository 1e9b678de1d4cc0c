"""Benchmarks of fmnist_sweep and its peers: run `python -m benchmarks` in the repository's root."""
