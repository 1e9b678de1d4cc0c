"""Benchmarks of fmnist_sweep beside its peers: `python -m benchmarks` in the repository's root."""
