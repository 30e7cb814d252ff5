"""Selectors that a method has to beat."""
