"""Criteria: how much each unit matters, by the model and some batches. The registry ``criteria`` knows their names."""

from nas_prune.criteria.ablation import ablation
from nas_prune.criteria.criterion import Batches, Criterion, criteria
from nas_prune.criteria.shapley import shapley
from nas_prune.criteria.taylor import taylor

__all__ = ["Batches", "Criterion", "ablation", "criteria", "shapley", "taylor"]
