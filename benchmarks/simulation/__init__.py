"""Play search strategies against recorded learning curves: `python -m benchmarks.simulation`."""
