"""Sweeps side by side, with statistics."""
