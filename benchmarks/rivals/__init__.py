"""Other searches over the space of `search=mlp`, as commands for `benchmarks.searching`."""
