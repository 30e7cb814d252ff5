"""Derive: make an architecture real. The result is an ordinary, smaller copy of the model, and nothing of the search.

Three steps, all read off the record of the trace: slice every parameter and buffer; set the integers that modules
keep about their widths (``num_heads``, ``groups``, ``normalized_shape`` ...) from what the graph says they became; keep
the attention scale of the dense model by folding sqrt(new / old) into the rows that make the queries (ours).
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.fx import Node

from nas_prune.arch import Arch
from nas_prune.citizen import run_and_describe
from nas_prune.errors import DeriveError
from nas_prune.intercept import plain_copy
from nas_prune.repair import repair
from nas_prune.tracing import Axes
from nas_prune.tracing.capture import evaluating
from nas_prune.tracing.oracle import size_of, take

MOVES = {"view", "_unsafe_view", "permute", "transpose", "unbind", "getitem", "select", "split", "split_with_sizes"}
MOVES |= {"chunk", "slice", "unsqueeze", "squeeze", "clone", "expand", "dropout"}


def derive(model: nn.Module, axes: Axes, arch: Arch) -> nn.Module:
    """A smaller copy of ``model`` that keeps the units of ``arch``; ``model`` itself is left untouched.

    Raises ArchError if the architecture does not fit the axes, DeriveError if the model's own code cannot express it.
    """
    arch.check(axes)
    small = plain_copy(model)
    _fold_attention_scales(small, axes, arch)
    _slice(small, axes, arch)
    repair(small, axes, arch)
    _try(small, axes)
    return small


def _slice(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Replace every tensor by what is left of it; tensors that are shared stay shared."""
    replaced: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            full = f"{path}.{name}" if path else name
            if value is None or full not in axes.tensors:
                continue
            if id(value) not in replaced:
                replaced[id(value)] = _smaller(value, take(axes, arch, value.detach(), axes.tensors[full]))
            setattr(module, name, replaced[id(value)])


def _smaller(old: Tensor, left: Tensor) -> Tensor:
    if left.shape == old.shape:
        return old
    left = left.contiguous()
    return nn.Parameter(left, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else left


def _fold_attention_scales(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Attention divides by sqrt(head_dim) of what it sees; scale the queries so that q.k / sqrt stays what it was."""
    for (node, _), _ in axes.walk.constants.items():
        term = axes.walk.of(node.args[0])[-1]
        factor = sqrt(size_of(axes, arch, term) / term.size)
        if factor != 1:
            writer, rows = _query_rows(axes, node)
            for tensor in (f"{writer}.weight", f"{writer}.bias"):
                if tensor in axes.tensors:
                    with torch.no_grad():
                        model.get_parameter(tensor)[rows] *= factor


def _query_rows(axes: Axes, attention: Node) -> tuple[str, Tensor]:
    """(module, rows) of the linear or norm whose output rows become the queries, followed through views and splits."""
    node = attention.args[0]
    chain: list[Node] = []
    while isinstance(node, Node) and str(getattr(node.target, "__name__", "")).split(".")[0] in MOVES:
        chain.append(node)
        node = node.args[0]
    assert isinstance(node, Node)
    kind = str(getattr(node.target, "__name__", "")).split(".")[0]
    if kind not in ("linear", "layer_norm", "rms_norm"):
        raise DeriveError(
            f"the queries of {axes.walk.where(attention)} come from {kind}, so its scale cannot be kept when head_dim "
            f"shrinks. Freeze the head_dim axes in the search space"
        )
    shape = axes.walk.shape(node)
    values: dict[Node, object] = {node: torch.arange(shape[-1]).expand(shape)}
    for step in reversed(chain):
        values[step] = step.target(values[step.args[0]], *step.args[1:], **step.kwargs)  # type: ignore[operator, index]
    rows = values[chain[0]] if chain else values[node]
    assert isinstance(rows, Tensor)
    return axes.walk.captured.owner(node), torch.unique(rows)


def _try(model: nn.Module, axes: Axes) -> None:
    """Run the derived model once on zeros of the traced shapes: shapes that its code cannot express show here."""
    like = next(model.parameters())
    inputs = [
        torch.zeros((1, *shape[1:]), dtype=like.dtype if dtype.is_floating_point else dtype, device=like.device)
        for shape, dtype in axes.walk.captured.inputs
    ]
    try:
        with evaluating(model):
            run_and_describe(model, inputs)
    except Exception as error:
        raise DeriveError(
            f"the code of {type(model).__name__} cannot run with these widths: {error}. "
            f"Freeze the axes of the module named there"
        ) from error
