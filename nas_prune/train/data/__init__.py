"""Data: a dataset by name becomes loaders."""
