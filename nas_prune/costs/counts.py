"""Exact costs from the graph: parameters and multiply-adds (MACs) as polynomials in the sizes of the axes.

A node's MACs are a product of dimensions, a dimension is a sum of products of axes; so both counts are exact at integer
sizes and differentiable at real ones. ``count`` is the ruler: what torch.utils.flop_counter and numel say of a model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_prune.costs.cost import Columns, Sizes, costs
from nas_prune.costs.polynomial import Polynomial
from nas_prune.tracing import Axes
from nas_prune.tracing.graph.capture import Inputs, as_tuple, batch_of, evaluating
from nas_prune.tracing.graph.single_operations import single_operations
from nas_prune.tracing.terms import Term


@dataclass(frozen=True)
class Count:
    """Multiply-adds for the example inputs, and parameters."""

    macs: int
    params: int


def count(model: nn.Module, example_inputs: Inputs) -> Count:
    """MACs of ``model(example_inputs)`` (pass a batch of one for MACs per image) and its number of parameters.

    A multiply-add is two of the operations that torch.utils.flop_counter counts.

    >>> npr.count(model, images)
    Count(macs=4099008, params=373658)
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(model), _frozen(model), single_operations(), counter:
        model(*as_tuple(example_inputs))
    return Count(counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: the counter hooks onto gradients, which there are none of."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@costs.register("params")
class Params:
    """Params: how many numbers the derived model has to keep, its parameters; counted exactly from the graph."""

    unit = "parameters"

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.polynomial = Polynomial(axes, _distinct(axes))

    def __call__(self, sizes: Sizes) -> Tensor:
        """Parameters when the axes have these sizes."""
        return _tensor(self.polynomial(sizes))

    def many(self, columns: Columns) -> Tensor:
        """Parameters (b) for sizes (b) per axis."""
        return self(columns)


@costs.register("macs")
class Macs:
    """MACs: multiply-adds of the derived model for the example inputs of the trace; counted exactly from the graph."""

    unit = "MACs"

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.polynomial = Polynomial(axes, [terms for node in axes.walk.products.values() for terms in node])
        captured = axes.walk.captured
        self.share = captured.batch / batch_of(captured.inputs)

    def __call__(self, sizes: Sizes) -> Tensor:
        """MACs when the axes have these sizes."""
        return _tensor(self.polynomial(sizes) * self.share)

    def many(self, columns: Columns) -> Tensor:
        """MACs (b) for sizes (b) per axis."""
        return self(columns)


def counted(axes: Axes, sizes: Sizes) -> Count:
    """MACs and parameters of the model that is derived at these sizes, without deriving it."""
    macs, params = (round(float(cost(axes)(sizes))) for cost in (Macs, Params))
    return Count(macs, params)


def _distinct(axes: Axes) -> list[tuple[Term, ...]]:
    """Terms of every parameter, shared ones once, the bits of branches that it goes with, live stripes alone."""
    captured, bits = axes.walk.captured, axes.presence
    names = {target for name, target in captured.tensors.items() if name not in captured.buffers}
    first = dict.fromkeys(captured.shared.get(name, name) for name in names)
    dims = {name: (axes.striped[name], axes.tensors[name][1]) for name in first if name in axes.striped}
    return [(*dims.get(name, axes.tensors[name]), *bits.get(name, ())) for name in first]


def _tensor(total: Tensor | float) -> Tensor:
    """A count as a tensor; float32 would round what is above 2^24."""
    return total if isinstance(total, Tensor) else torch.tensor(total, dtype=torch.float64)
