"""Recipes: YAML and the command line become settings."""
