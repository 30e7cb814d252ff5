"""Operators that contract a dimension: convolution, linear, matrix products.

The contracted dimension is where a closed unit would be seen, so it is a gate site. The rows of a weight write an
axis, its columns read one. A depthwise convolution reads nothing across channels: it only follows.
"""

from collections.abc import Sequence
from math import prod as product
from typing import Any, cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix, Term, factorize, freeze, prod
from nas_prune.tracing.walk import Site, Walk


def argument(node: Node, index: int, default: Any = None) -> Any:
    """Positional argument of a node, or its default."""
    return node.args[index] if len(node.args) > index else default


@rule("linear.default")
def linear(walk: Walk, node: Node) -> Dims:
    """x (... i), weight (o i), bias (o), or whatever can be added -> (... o)."""
    x, weight = walk.of(node.args[0]), walk.of(node.args[1])
    walk.role(node.args[1], 0, "write")
    walk.role(node.args[1], 1, "read")
    walk.tie(node, x[-1], weight[1])
    walk.sites.append(Site(node, "mask", 0, len(x) - 1, x[-1], weight[1]))
    walk.products[node] = [(*x[:-1], weight[0], weight[1])]
    return walk.broadcast(node, (*x[:-1], weight[0]), walk.of(argument(node, 2)))


@rule("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def convolution(walk: Walk, node: Node) -> Dims:
    """x (b (g i) ...) or ((g i) ...), weight ((g o) i ...), bias ((g o)) -> (b (g o) ...) or ((g o) ...)."""
    weight, bias, groups = walk.of(node.args[1]), argument(node, 2), int(cast(int, argument(node, 6, 1)))
    walk.role(node.args[1], 0, "write")
    batch, channels, space = _convolved(walk, node)
    if groups == 1:
        walk.role(node.args[1], 1, "read")
        walk.tie(node, channels, weight[1])
        walk.sites.append(Site(node, "mask", 0, len(batch), channels, weight[1]))
    else:
        _grouped(walk, node, batch, channels, groups)
    if bias is not None:
        walk.tie(node, weight[0], walk.of(bias)[0])
    taps = product(term.size for term in (*weight[2:], *space))
    walk.products[node] = [(*batch, Fix(taps), weight[0], weight[1])]
    return (*batch, weight[0], *space)


def _convolved(walk: Walk, node: Node) -> tuple[Dims, Term, Dims]:
    """Images, channels, and space behind a convolution of images or of one alone; what it slides over is fixed."""
    x, weight = walk.of(node.args[0]), walk.of(node.args[1])
    images = len(x) - len(weight) + 1
    for space in (*x[images + 1 :], *weight[2:]):
        freeze(space, f"a convolution slides over it: {walk.where(node)}")
    return x[:images], x[images], tuple(Fix(size) for size in walk.shape(node)[images + 1 :])


def _grouped(walk: Walk, node: Node, batch: Dims, x: Term, groups: int) -> None:
    """Whole groups can go (one axis), and the same positions inside every group (another)."""
    inside, weight = x.size // groups, walk.of(node.args[1])
    group, read = factorize(x, groups, inside)
    other, _ = factorize(weight[0], groups, weight[0].size // groups)
    walk.tie(node, group, other)
    if inside > 1:
        walk.role(node.args[1], 1, "read")
        walk.tie(node, read, weight[1])
        walk.sites.append(Site(node, "mask", 0, len(batch), prod([Fix(groups), read]), weight[1]))
    walk.sizes(node, 6, group)


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed_convolution(walk: Walk, node: Node) -> Dims:
    """x (b (g i) ...) or ((g i) ...), weight ((g i) o ...), bias ((g o)) -> (b (g o) ...) or ((g o) ...)."""
    weight, bias, groups = walk.of(node.args[1]), argument(node, 2), int(cast(int, argument(node, 6, 1)))
    walk.role(node.args[1], 0, "read")
    walk.role(node.args[1], 1, "write")
    batch, channels, space = _convolved(walk, node)
    walk.tie(node, channels, weight[0])
    group, read = factorize(channels, groups, channels.size // groups)
    out = prod([group, weight[1]])
    walk.sites.append(Site(node, "mask", 0, len(batch), prod([Fix(groups), read])))
    if groups > 1:
        walk.sizes(node, 6, group)
    if bias is not None:
        walk.tie(node, out, walk.of(bias)[0])
    before = walk.shape(cast(Node, node.args[0]))[len(batch) + 1 :]
    taps = product([*before, *(term.size for term in weight[2:])])
    walk.products[node] = [(*batch, Fix(taps), channels, weight[1])]
    return (*batch, out, *space)


@rule("addmm.default", "baddbmm.default")
def addmm(walk: Walk, node: Node) -> Dims:
    """bias (n) + a (m k) @ b (k n) -> (m n)."""
    bias, a, b = (walk.of(value) for value in node.args[:3])
    result = _product(walk, node, a, b, 1)
    return walk.broadcast(node, bias, result)


@rule("mm.default", "bmm.default", "matmul.default")
def matmul(walk: Walk, node: Node) -> Dims:
    """a (... m k) @ b (... k n) -> (... m n)."""
    return _product(walk, node, walk.of(node.args[0]), walk.of(node.args[1]), 0)


def _product(walk: Walk, node: Node, a: Dims, b: Dims, first: int) -> Dims:
    if len(a) < 2 or len(b) < 2:
        return cast(Dims, walk.frozen(node, f"a product with a vector: {walk.where(node)}"))
    walk.role(node.args[first + 1], 0, "read")
    walk.role(node.args[first + 1], 1, "write")
    walk.tie(node, a[-1], b[-2])
    batch = walk.broadcast(node, a[:-2], b[:-2])
    walk.sites.append(Site(node, "mask", first, len(a) - 1, a[-1]))
    walk.products[node] = [(*batch, a[-2], a[-1], b[-1])]
    return (*batch, a[-2], b[-1])


@rule("einsum.default")
def einsum(walk: Walk, node: Node) -> Dims:
    """One term per letter; letters that are missing from the output are contracted."""
    equation = str(node.args[0]).replace(" ", "")
    operands = cast(Sequence[Node], node.args[1])
    inputs, _, output = equation.partition("->")
    if "..." in equation or not output or any(len(set(spec)) < len(spec) for spec in inputs.split(",")):
        return cast(Dims, walk.frozen(node, f"an einsum with an ellipsis or a diagonal: {walk.where(node)}"))
    letters: dict[str, Term] = {}
    for spec, operand in zip(inputs.split(","), operands, strict=True):
        for letter, term in zip(spec, walk.of(operand), strict=True):
            letters[letter] = walk.tie(node, letters[letter], term) if letter in letters else term
    specs = inputs.split(",")
    for letter in sorted(set(letters) - set(output)):
        first = next(index for index, spec in enumerate(specs) if letter in spec)
        walk.sites.append(Site(node, "mask", first, specs[first].index(letter), letters[letter]))
    walk.products[node] = [tuple(letters.values())]
    return tuple(letters[letter] for letter in output)
