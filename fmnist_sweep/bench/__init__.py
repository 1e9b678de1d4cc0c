"""How fast, against what else, on this machine."""
