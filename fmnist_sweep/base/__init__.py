"""Foundations of every other package: errors, commands, processes, paths, locks, schemas."""
