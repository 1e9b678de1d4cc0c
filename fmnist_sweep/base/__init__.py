"""What every other part stands on: errors, streams, processes, paths, figures."""
