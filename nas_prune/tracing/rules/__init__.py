"""One rule per ATen operator, one file per family of operators. Importing this package enters them all."""

from nas_prune.tracing.rules import (
    attention,
    elementwise,
    leaves,
    linear,
    lookups,
    norms,
    rearrange,
    recurrent,
    reductions,
    shapes,
)

__all__ = [
    "attention",
    "elementwise",
    "leaves",
    "linear",
    "lookups",
    "norms",
    "rearrange",
    "recurrent",
    "reductions",
    "shapes",
]
