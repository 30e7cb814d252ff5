"""Costs: sizes of the axes -> parameters, MACs, milliseconds. The registry ``costs`` knows their names."""

from nas_prune.costs.budget import Budget
from nas_prune.costs.cost import CostModel, Sizes, costs
from nas_prune.costs.graph import Count, Macs, Params, count
from nas_prune.costs.latency_predictor import LatencyPredictor, PredictionError
from nas_prune.costs.measure import Timing, measure, measure_together

__all__ = [
    "Budget",
    "CostModel",
    "Count",
    "LatencyPredictor",
    "Macs",
    "Params",
    "PredictionError",
    "Sizes",
    "Timing",
    "costs",
    "count",
    "measure",
    "measure_together",
]
