"""Schedules: how much is closed, and how firmly, epoch by epoch. The registry ``schedules`` knows their names."""

from nas_prune.methods.schedules.schedule import Phase, Schedule, schedules

__all__ = ["Phase", "Schedule", "schedules"]
