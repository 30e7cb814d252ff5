"""Penalties: what is added to the task loss while gates learn. The registry ``penalties`` knows their names."""

from nas_prune.methods.penalties.penalty import Penalty, penalties

__all__ = ["Penalty", "penalties"]
