"""Read and show run folders. Imports no torch; only `importance` imports Optuna."""
