"""A sweep drives trials: space, study, one job, and the loop over all."""
