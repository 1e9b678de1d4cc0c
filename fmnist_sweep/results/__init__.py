"""Reads run folders and shows them; imports no torch, and optuna in `importance` alone."""
