"""Penalties: what is added to the task loss while gates learn. The registry ``penalties`` knows their names."""

from nas_prune.penalties.budget import BudgetPenalty
from nas_prune.penalties.penalty import penalties
from nas_prune.penalties.skeleton import SkeletonPenalty
from nas_prune.penalties.structural import StructuralPenalty

__all__ = ["BudgetPenalty", "SkeletonPenalty", "StructuralPenalty", "penalties"]
