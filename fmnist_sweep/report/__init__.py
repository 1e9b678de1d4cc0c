"""Reads run folders and shows them; imports neither torch nor optuna."""
