"""Criteria: how much each unit matters, by the model and some batches. The registry ``criteria`` knows their names."""

from nas_prune.methods.criteria.ablation import ablation
from nas_prune.methods.criteria.criterion import Batches, Criterion, criteria
from nas_prune.methods.criteria.shapley import shapley
from nas_prune.methods.criteria.taylor import taylor

__all__ = ["Batches", "Criterion", "ablation", "criteria", "shapley", "taylor"]
