"""Costs: sizes of the axes -> parameters, MACs, milliseconds. The registry ``costs`` knows their names."""

from nas_prune.costs.additive import AdditivePredictor
from nas_prune.costs.budget import Budget
from nas_prune.costs.conditions import Conditions, Runtime
from nas_prune.costs.cost import CostModel, Sizes, costs
from nas_prune.costs.cross_validation import Chosen, best, candidates, validate
from nas_prune.costs.graph import Count, Macs, Params, count, counted
from nas_prune.costs.latency_predictor import LatencyPredictor
from nas_prune.costs.limits import Limits
from nas_prune.costs.measure import Ratio, Timing, Timings, measure, measure_together
from nas_prune.costs.memory import Memory
from nas_prune.costs.monotone import MonotonePredictor
from nas_prune.costs.operator_table import OperatorTable, measure_table
from nas_prune.costs.operator_timing import Bench
from nas_prune.costs.predictor import PredictionError, Predictor, predictors
from nas_prune.costs.staircase import measured_divisors

__all__ = [
    "AdditivePredictor",
    "Bench",
    "Budget",
    "Chosen",
    "Conditions",
    "CostModel",
    "Count",
    "LatencyPredictor",
    "Limits",
    "Macs",
    "Memory",
    "MonotonePredictor",
    "OperatorTable",
    "Params",
    "PredictionError",
    "Predictor",
    "Ratio",
    "Runtime",
    "Sizes",
    "Timing",
    "Timings",
    "best",
    "candidates",
    "costs",
    "count",
    "counted",
    "measure",
    "measure_table",
    "measure_together",
    "measured_divisors",
    "predictors",
    "validate",
]
