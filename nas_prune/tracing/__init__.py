"""Find every width of a model that can shrink, from the graph of what the model really computes.

``capture`` exports the model, ``walk`` solves one term per tensor dimension (``terms``) with one rule per operator
(``rules``), ``find`` names the axes. Works on any module that ``torch.export`` captures; knows no class names.
"""

from nas_prune.tracing import rules
from nas_prune.tracing.axes import Axes, find
from nas_prune.tracing.graph.capture import Inputs, capture
from nas_prune.tracing.ruled import rule
from nas_prune.tracing.walk import walk

__all__ = ["Axes", "Inputs", "capture", "find", "rule", "rules", "walk"]
