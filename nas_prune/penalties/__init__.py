"""Penalties: what is added to the task loss while gates learn. The registry ``penalties`` knows their names."""

from nas_prune.penalties.budget import BudgetPenalty
from nas_prune.penalties.penalty import penalties

__all__ = ["BudgetPenalty", "penalties"]
