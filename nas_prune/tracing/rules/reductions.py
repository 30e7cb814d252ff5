"""Pooling, sums, means, maxima: spatial dimensions are fixed, channels pass, and a reduced axis is read."""

from collections.abc import Sequence
from typing import cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Dims, Fix, free, freeze
from nas_prune.tracing.walk import Site, Walk, operator

CHANNELS = 4  # fewer are not channels


def _reduced(walk: Walk, node: Node, dims: int | Sequence[int] | None, keepdim: bool, how: str) -> Dims:
    """Reduced dimensions disappear or become 1; those that are axes are gate sites of the form ``how``."""
    x = walk.of(node.args[0])
    listed = (dims,) if isinstance(dims, int) else tuple(dims or ()) or range(len(x))
    gone = {dim % len(x) for dim in listed}
    for dim in sorted(gone):
        walk.sites.append(Site(node, how, 0, dim, x[dim]))
    if keepdim:
        return tuple(Fix(1) if dim in gone else term for dim, term in enumerate(x))
    return tuple(term for dim, term in enumerate(x) if dim not in gone)


@rule("mean.dim", "mean.default")
def mean(walk: Walk, node: Node) -> Dims | list[Dims]:
    """The average is over what is kept."""
    x, dims = walk.of(node.args[0]), argument(node, 1)
    gated = [dim for dim in ((dims,) if isinstance(dims, int) else dims or range(len(x))) if free(x[dim])]
    if len(gated) > 1:
        return walk.frozen(node, f"a mean over several axes at once: {walk.where(node)}")
    return _reduced(walk, node, dims, argument(node, 2, False), "mean")


@rule("sum.dim_IntList", "sum.default")
def total(walk: Walk, node: Node) -> Dims:
    """A closed unit adds nothing."""
    return _reduced(walk, node, argument(node, 1), argument(node, 2, False), "mask")


@rule("linalg_vector_norm.default")
def vector_norm(walk: Walk, node: Node) -> Dims:
    """x, order, dims, keepdim: a closed unit adds nothing to a norm of positive order."""
    if cast(float, argument(node, 1, 2)) <= 0:
        return cast(Dims, walk.frozen(node, f"a norm that counts zeros: {walk.where(node)}"))
    return _reduced(walk, node, argument(node, 2), argument(node, 3, False), "mask")


@rule("amax.default", "amin.default")
def largest(walk: Walk, node: Node) -> Dims:
    """A closed unit is never the largest, nor the smallest."""
    return _reduced(walk, node, argument(node, 1), argument(node, 2, False), operator(node).split(".")[0])


@rule("max.dim", "min.dim")
def largest_with_place(walk: Walk, node: Node) -> Dims | list[Dims]:
    """The same, and where it is; a place that is used means every unit."""
    if any(user.args[1] == 1 and user.users for user in node.users):
        return ordered(walk, node)
    how = "amax" if operator(node) == "max.dim" else "amin"
    return [_reduced(walk, node, cast(int, node.args[1]), argument(node, 2, False), how)] * 2


@rule("softmax.int", "_softmax.default")
def softmax(walk: Walk, node: Node) -> Dims:
    """A closed entry takes no probability. A softmax over two or three chooses among branches: these stay (ours)."""
    x, dim = walk.of(node.args[0]), cast(int, node.args[1])
    if x[dim].size < CHANNELS:
        freeze(x[dim], f"branches that {walk.where(node)} weighs")
    walk.sites.append(Site(node, "softmax", 0, dim % len(x), x[dim]))
    return x


@rule("log_softmax.int", "cumsum.default", "cumprod.default", "logcumsumexp.default", "glu.default")
@rule("sort.default", "sort.stable", "topk.default")
@rule("logsumexp.default", "prod.dim_int", "var.correction", "std.correction", "any.dim", "all.dim")
def ordered(walk: Walk, node: Node) -> Dims | list[Dims]:
    """Every entry of the dimension counts, so it cannot change; the others pass."""
    x = walk.of(node.args[0])
    every = operator(node).startswith(("var", "std"))  # which are over everything, where no dimension is named
    asked = argument(node, 2 if "topk" in str(node.target) or "stable" in str(node.target) else 1, () if every else -1)
    dims = {dim % len(x) for dim in ((asked,) if isinstance(asked, int) else asked or range(len(x)))}
    for dim in dims:
        freeze(x[dim], f"read as a whole by {walk.where(node)}")
    values = node.meta["val"]
    results = [_rest(x, dims, value.shape) for value in (values if isinstance(values, tuple | list) else [values])]
    return results if isinstance(values, tuple | list) else results[0]


def _rest(x: Dims, dims: set[int], shape: Sequence[int]) -> Dims:
    if len(shape) < len(x):
        return tuple(term for dim, term in enumerate(x) if dim not in dims)
    return tuple(Fix(int(shape[dim])) if dim in dims else term for dim, term in enumerate(x))


@rule("max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "adaptive_max_pool2d.default")
@rule("upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec", "_upsample_bicubic2d_aa.vec")
@rule("_upsample_bilinear2d_aa.vec", "_adaptive_avg_pool2d.default", "max_pool2d_with_indices.default")
@rule("upsample_nearest2d.default", "upsample_bilinear2d.default", "upsample_bicubic2d.default")
@rule("max_pool3d.default", "avg_pool3d.default", "adaptive_avg_pool3d.default", "grid_sampler.default")
@rule("avg_pool1d.default", "max_pool1d.default", "adaptive_avg_pool1d.default", "upsample_linear1d.vec")
def spatial(walk: Walk, node: Node) -> Dims | list[Dims]:
    """All dimensions after the second are space; images and channels pass."""
    x = walk.of(node.args[0])
    lead = x[: len(x) - _space(node)]
    for term in x[len(lead) :]:
        freeze(term, f"resampled by {walk.where(node)}")
    values = node.meta["val"]
    if isinstance(values, tuple | list):
        return [(*lead, *(Fix(int(size)) for size in value.shape[len(lead) :])) for value in values]
    return (*lead, *(Fix(size) for size in walk.shape(node)[len(lead) :]))


def _space(node: Node) -> int:
    """Spatial dimensions of an operator, from its name."""
    return next((count for count in (1, 3) if f"{count}d" in str(node.target)), 2)
