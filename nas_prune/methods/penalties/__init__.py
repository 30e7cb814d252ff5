"""Penalties: what is added to the task loss while gates learn. The registry ``penalties`` knows their names."""

from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.penalties.penalty import penalties
from nas_prune.methods.penalties.skeleton import SkeletonPenalty
from nas_prune.methods.penalties.structural import StructuralPenalty

__all__ = ["BudgetPenalty", "SkeletonPenalty", "StructuralPenalty", "penalties"]
