"""A sweep drives trials: what to try (space), what was tried (study), one of them (job), all (loop)."""
