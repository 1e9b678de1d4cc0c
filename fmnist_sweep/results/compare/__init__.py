"""Compare sweeps, with statistics."""
