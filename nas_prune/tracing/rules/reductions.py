"""Pooling and means: spatial dimensions are fixed and channels pass; a mean over an axis runs over its kept units."""

from collections.abc import Sequence
from typing import cast

from torch.fx import Node

from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Dims, Fix, free, freeze
from nas_prune.tracing.walk import Site, Walk, rule


@rule("mean.dim")
def mean(walk: Walk, node: Node) -> Dims | list[Dims]:
    """Reduced dimensions disappear (or become 1); the average is over what is kept."""
    x = walk.of(node.args[0])
    dims = {dim % len(x) for dim in cast(Sequence[int], node.args[1] or range(len(x)))}
    gated = [dim for dim in sorted(dims) if free(x[dim])]
    if len(gated) > 1:
        return walk.frozen(node, f"a mean over several axes at once: {walk.where(node)}")
    for dim in gated:
        walk.sites.append(Site(node, "mean", 0, dim, x[dim]))
    if argument(node, 2, False):
        return tuple(Fix(1) if dim in dims else term for dim, term in enumerate(x))
    return tuple(term for dim, term in enumerate(x) if dim not in dims)


@rule("max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "adaptive_max_pool2d.default")
@rule("upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec", "_upsample_bicubic2d_aa.vec")
@rule("_upsample_bilinear2d_aa.vec", "_adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default_")
def spatial(walk: Walk, node: Node) -> Dims | list[Dims]:
    """The last two dimensions are space, the others pass."""
    x = walk.of(node.args[0])
    for term in x[-2:]:
        freeze(term, f"resampled by {walk.where(node)}")
    values = node.meta["val"]
    if isinstance(values, tuple | list):
        return [(*x[:-2], *(Fix(int(size)) for size in value.shape[-2:])) for value in values]
    return (*x[:-2], *(Fix(size) for size in walk.shape(node)[-2:]))


@rule("max_pool2d_with_indices.default")
def max_pool_with_indices(walk: Walk, node: Node) -> Dims | list[Dims]:
    """As ``spatial``, with the positions of the maxima as a second output."""
    return spatial(walk, node)


@rule("softmax.int", "_softmax.default", "log_softmax.int")
def softmax(walk: Walk, node: Node) -> Dims:
    """Its dimension is frozen: a closed entry would still take probability."""
    x = walk.of(node.args[0])
    freeze(x[cast(int, node.args[1])], f"softmax runs over it: {walk.where(node)}")
    return x
