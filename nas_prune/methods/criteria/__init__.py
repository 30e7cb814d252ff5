"""Criteria: how much each unit matters, by the model and some batches. The registry ``criteria`` knows their names."""

from nas_prune.methods.criteria.criterion import Criterion, criteria

__all__ = ["Criterion", "criteria"]
