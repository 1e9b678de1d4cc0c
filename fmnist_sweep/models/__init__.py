"""Plain `torch.nn` modules, independent of the rest of this package."""
