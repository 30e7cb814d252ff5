"""Dimensions of parameters and buffers that must stay: those that were named, and those that would come back.

A rotary embedding keeps a table of frequencies, and refills it from the width that it was made with as soon as
``model.half()`` or ``model.to(...)`` has rounded it: a smaller one would be too wide again, or hold other frequencies.
"""

from collections.abc import Mapping

from torch import nn

from nas_prune.base.errors import TraceError

Reasons = Mapping[tuple[str, int], str]  # by the name of a tensor, and a dimension of it


def staying(model: nn.Module, named: Reasons) -> Reasons:
    """Both together. Raises TraceError where what is named is no dimension of a parameter."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for tensor, dim in named:
        if tensor not in parameters or not 0 <= dim < parameters[tensor].ndim:
            raise TraceError(f"cannot freeze dimension {dim} of {tensor!r}: the model has no such parameter dimension")
    return {**_made_anew(model), **named}


def _made_anew(model: nn.Module) -> Reasons:
    """Those of buffers whose module does something of its own when it is cast or moved."""
    return {
        (f"{path}.{name}" if path else name, dim): f"{type(module).__name__} makes it anew when it is cast"
        for path, module in model.named_modules()
        if type(module)._apply is not nn.Module._apply
        for name, buffer in module.named_buffers(recurse=False)
        for dim in range(buffer.ndim)
    }
