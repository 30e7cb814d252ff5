"""Find every width of a model that can shrink, from the graph of what the model really computes.

``trace(model, example_inputs)`` exports the model, solves one term per tensor dimension (``terms``) with one rule per
operator (``rules``), and returns the axes. Works on any module that ``torch.export`` captures; knows no class names.
"""

from collections.abc import Mapping

from torch import nn

from nas_prune.errors import TraceError
from nas_prune.tracing import rules
from nas_prune.tracing.capture import Inputs, capture
from nas_prune.tracing.found import Axes, find
from nas_prune.tracing.walk import walk

__all__ = ["Axes", "rules", "trace"]


def trace(model: nn.Module, example_inputs: Inputs, *, freeze: Mapping[tuple[str, int], str] | None = None) -> Axes:
    """Axes of a model.

    ``example_inputs``: what ``forward`` takes, one tensor or a tuple, e.g. (b 3 h w); only shapes matter.
    ``freeze``: dimensions of parameters that must not change, ``{("fc.weight", 1): "my reason"}``.
    Raises TraceError when the model cannot be captured.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for tensor, dim in freeze or {}:
        if tensor not in parameters or not 0 <= dim < parameters[tensor].ndim:
            raise TraceError(f"cannot freeze dimension {dim} of {tensor!r}: the model has no such parameter dimension")
    return find(walk(capture(model, example_inputs), freeze_tensors=freeze))
