"""Operators that move entries between channels and space, or repeat them."""

from collections.abc import Sequence
from math import prod as product
from typing import cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Dims, Fix, factorize, freeze, prod, resolve
from nas_prune.tracing.walk import Walk


@rule("repeat.default", "tile.default")
def repeat(walk: Walk, node: Node) -> Dims:
    """The whole dimension again and again: (r x)."""
    x, times = walk.of(node.args[0]), cast(Sequence[int], node.args[1])
    rank = max(len(x), len(times))
    x = (*(Fix(1) for _ in range(rank - len(x))), *x)
    times = (*(1 for _ in range(rank - len(times))), *times)
    return tuple(prod([Fix(count), term]) if count != 1 else term for count, term in zip(times, x, strict=True))


@rule("repeat_interleave.self_int")
def repeat_interleave(walk: Walk, node: Node) -> Dims | list[Dims]:
    """Each entry several times in a row: (x r)."""
    x, times, dim = walk.of(node.args[0]), cast(int, node.args[1]), argument(node, 2)
    if dim is None:
        return walk.frozen(node, f"flattened by {walk.where(node)}")
    return tuple(prod([term, Fix(times)]) if d == dim % len(x) else term for d, term in enumerate(x))


@rule("pixel_shuffle.default")
def pixel_shuffle(walk: Walk, node: Node) -> Dims:
    """(b (c r r) h w) -> (b c (h r) (w r))."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    _freeze_space(walk, node, x)
    channels, inside = factorize(x[-3], shape[-3], x[-3].size // shape[-3])
    freeze(inside, f"moved into space by {walk.where(node)}")
    return (*x[:-3], resolve(channels), Fix(shape[-2]), Fix(shape[-1]))


@rule("pixel_unshuffle.default")
def pixel_unshuffle(walk: Walk, node: Node) -> Dims:
    """(b c (h r) (w r)) -> (b (c r r) h w)."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    _freeze_space(walk, node, x)
    return (*x[:-3], prod([x[-3], Fix(shape[-3] // x[-3].size)]), Fix(shape[-2]), Fix(shape[-1]))


@rule("channel_shuffle.default", "native_channel_shuffle.default")
def channel_shuffle(walk: Walk, node: Node) -> Dims:
    """(b (g k) ...) -> (b (k g) ...)."""
    x, groups = walk.of(node.args[0]), cast(int, node.args[1])
    group, inside = factorize(x[1], groups, x[1].size // groups)
    walk.sizes(node, 1, group)
    return (x[0], prod([inside, group]), *x[2:])


@rule("im2col.default")
def im2col(walk: Walk, node: Node) -> Dims:
    """(b c h w) -> (b (c taps) l)."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    _freeze_space(walk, node, x)
    return (*x[:-3], prod([x[-3], Fix(shape[-2] // x[-3].size)]), Fix(shape[-1]))


@rule("col2im.default")
def col2im(walk: Walk, node: Node) -> Dims:
    """(b (c taps) l) -> (b c h w)."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    taps = product(cast(Sequence[int], node.args[2]))
    channels, inside = factorize(x[-2], x[-2].size // taps, taps)
    for term in (inside, x[-1]):
        freeze(term, f"moved into space by {walk.where(node)}")
    return (*x[:-2], resolve(channels), Fix(shape[-2]), Fix(shape[-1]))


def _freeze_space(walk: Walk, node: Node, x: Dims) -> None:
    for term in x[-2:]:
        freeze(term, f"space of {walk.where(node)}")
