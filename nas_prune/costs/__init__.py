"""Costs: sizes of the axes -> parameters, MACs, milliseconds. The registry ``costs`` knows their names."""

from nas_prune.costs.budget import Budget
from nas_prune.costs.cost import CostModel, Sizes, costs
from nas_prune.costs.counts import Count, Macs, Params, count, counted
from nas_prune.costs.limits import Limits
from nas_prune.costs.memory import Memory
from nas_prune.costs.operators.staircase import measured_divisors
from nas_prune.costs.operators.table import OperatorTable, measure_table
from nas_prune.costs.operators.timing import Bench
from nas_prune.costs.predictors.additive import AdditivePredictor
from nas_prune.costs.predictors.cross_validation import ChosenPredictor, best, candidates, validate
from nas_prune.costs.predictors.lpnet import LatencyPredictor
from nas_prune.costs.predictors.monotone import MonotonePredictor
from nas_prune.costs.predictors.predictor import PredictionError, Predictor, predictors
from nas_prune.costs.timing.conditions import Conditions, Runtime
from nas_prune.costs.timing.measure import Ratio, Timing, Timings, measure, measure_together

__all__ = [
    "AdditivePredictor",
    "Bench",
    "Budget",
    "ChosenPredictor",
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
