"""Plain `torch.nn` modules that know nothing of this project."""
