"""Operators: the convolutions, linear layers and attentions of a graph, each as something that can be timed alone.

nn-Meter (Zhang et al., MobiSys 2021) and HALP (Shen et al., arXiv 2110.10811) predict a network from its operators. An
operator has two widths: inputs and outputs; of a grouped convolution its groups and the channels inside each; of
attention its heads and the channels of each. Where two terms share a width (channels into and out of a group) it is
their geometric mean. Operators of one ``Shape`` are timed once. What is not listed here (transposed convolutions, bare
matrix products) is left to costs that count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod as product
from typing import Any

from torch.fx import Node

from nas_prune.tracing import Axes
from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Term, factorize, free
from nas_prune.tracing.walk import operator


@dataclass(frozen=True)
class OperatorShape:
    """All that the time of an operator depends on, but for its widths, the batch and the conditions.

    ``space``: size of the input per image (h w; tokens for linear and attention); ``images``: inputs per image of the
    network (windows); ``full``: the two dense widths; ``inputs``: dense channels into one group; ``movable``: whether
    each of the two widths can change.
    """

    kind: str
    space: tuple[int, ...]
    images: int
    full: tuple[int, int]
    movable: tuple[bool, bool]
    inputs: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    bias: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the widths are groups and channels inside each."""
        return self.kind.startswith("grouped")

    @property
    def key(self) -> str:
        """The shape as text, the same in every run: ``conv 3x3,1x1,1x1,1x1,16x16 64-64 ...``."""
        facts = (self.kernel, self.stride, self.padding, self.dilation, self.space)
        texts = ",".join(each if isinstance(each, str) else "x".join(map(str, each)) for each in facts)
        flags = "".join(str(int(flag)) for flag in (*self.movable, self.bias))
        return f"{self.kind} {texts} {self.full[0]}-{self.full[1]} of {self.inputs} times {self.images} {flags}"


@dataclass(frozen=True)
class Operator:
    """One node of the graph, the module it is in, its shape, the terms of its two widths, and the bits of the branches
    that it is inside of."""

    node: str
    module: str
    shape: OperatorShape
    first: tuple[Term, ...]
    second: tuple[Term, ...]
    present: tuple[Term, ...] = ()


Known = tuple[OperatorShape, tuple[Term, ...], tuple[Term, ...]]


def operators(axes: Axes) -> list[Operator]:
    """Every operator of the graph that can be timed alone, in the order of the graph."""
    found = []
    for node in axes.walk.products:
        reader = READERS.get(operator(node))
        known = reader(axes, node) if reader is not None and _per_image(axes, node) else None
        if known is not None:
            bits = tuple(axes.walk.presence.get(node, ()))
            found.append(Operator(node.name, axes.walk.captured.owner(node), *known, bits))
    return found


def _images(axes: Axes) -> int:
    """Images of the trace, which is of two where the caller gave one."""
    return max(2, axes.walk.captured.batch)


def _per_image(axes: Axes, node: Node) -> bool:
    """Whether the work grows with the batch; that of a position table does not."""
    return axes.walk.shape(node)[0] % _images(axes) == 0


def _convolution(axes: Axes, node: Node) -> Known:
    """x (b (g i) ...), weight ((g o) i ...)."""
    walk = axes.walk
    x, weight, groups = walk.of(node.args[0]), walk.of(node.args[1]), int(argument(node, 6, 1))
    rank, padding = len(x) - 2, argument(node, 4, 0)
    first: tuple[Term, ...] = (x[1],)
    second: tuple[Term, ...] = (weight[0],)
    if groups > 1:
        group, outputs = factorize(weight[0], groups, weight[0].size // groups)  # the walk has cut it there already
        first, second = (group,), (weight[1], outputs)
    shape = OperatorShape(
        kind="grouped convolution" if groups > 1 else "convolution",
        space=tuple(term.size for term in x[2:]),
        images=x[0].size // _images(axes),
        full=(first[0].size, second[-1].size),
        movable=_movable(first, second),
        inputs=weight[1].size,
        kernel=tuple(term.size for term in weight[2:]),
        stride=_each(argument(node, 3, 1), rank),
        padding=padding if isinstance(padding, str) else _each(padding, rank),
        dilation=_each(argument(node, 5, 1), rank),
        bias=argument(node, 2) is not None,
    )
    return shape, first, second


def _linear(axes: Axes, node: Node) -> Known:
    """x (b ... i), weight (o i)."""
    x, weight = axes.walk.of(node.args[0]), axes.walk.of(node.args[1])
    first, second = (x[-1],), (weight[0],)
    rows = product(term.size for term in x[:-1]) // _images(axes)
    full = (x[-1].size, weight[0].size)
    bias = argument(node, 2) is not None
    return OperatorShape("linear", (rows,), 1, full, _movable(first, second), bias=bias), first, second


def _attention(axes: Axes, node: Node) -> Known | None:
    """q (b h n e), k (b h s e), v (b h s d), without a mask."""
    q, k, v = (axes.walk.of(value) for value in node.args[:3])
    simple = len(q) == 4 and q[1].size == k[1].size and q[3].size == v[3].size and argument(node, 3) is None
    if not simple or free(q[2]) or free(k[2]):
        return None
    first, second = (q[1],), (q[3], v[3])
    images = q[0].size // _images(axes)
    space, full = (q[2].size, k[2].size), (q[1].size, q[3].size)
    return OperatorShape("attention", space, images, full, _movable(first, second)), first, second


def _movable(first: tuple[Term, ...], second: tuple[Term, ...]) -> tuple[bool, bool]:
    return any(map(free, first)), any(map(free, second))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number per dimension of space."""
    values = (value,) if isinstance(value, int) else tuple(int(each) for each in value)
    return values * rank if len(values) == 1 else values


READERS: dict[str, Callable[[Axes, Node], Known | None]] = {
    **{f"conv{rank}d.{form}": _convolution for rank in (1, 2, 3) for form in ("default", "padding")},
    "linear.default": _linear,
    "scaled_dot_product_attention.default": _attention,
}
