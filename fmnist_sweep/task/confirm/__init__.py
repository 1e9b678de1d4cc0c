"""A sweep's winners on fresh seeds, then the test set, once."""
