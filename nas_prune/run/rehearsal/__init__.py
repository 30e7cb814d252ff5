"""Rehearsal: what a recipe asks of its model, tried on a copy before the first second is spent."""
