"""One rule per ATen operator, one file per family of operators. Importing this package enters them all."""

from nas_prune.tracing.rules import attention, elementwise, linear, norms, reductions, shapes

__all__ = ["attention", "elementwise", "linear", "norms", "reductions", "shapes"]
