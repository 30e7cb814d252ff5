"""Timing: a model in the runtime that will run it, under conditions that are written down."""
