"""Normalisations. Per-channel statistics (BatchNorm) need no gate; statistics over an axis run over its kept units."""

from collections.abc import Sequence
from typing import Any, cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Dims, Fix, factorize, free
from nas_prune.tracing.walk import Site, Walk


def _follow(walk: Walk, node: Node, terms: Dims, *parameters: Any) -> None:
    """Tie a norm's parameters and statistics to the dimensions that they scale."""
    for parameter in parameters:
        if parameter is not None:
            for term, own in zip(terms, walk.of(parameter), strict=True):
                walk.tie(node, term, own)


@rule("_native_batch_norm_legit_no_training.default", "batch_norm.default", "native_batch_norm.default")
def batch_norm(walk: Walk, node: Node) -> Dims | list[Dims]:
    """x (b c ...), weight, bias, mean, variance (c): nothing is mixed across channels."""
    x = walk.of(node.args[0])
    _follow(walk, node, (x[1],), *node.args[1:5])
    values = node.meta["val"]
    if not isinstance(values, tuple | list):
        return x
    return [x, *(tuple(Fix(int(size)) for size in value.shape) for value in values[1:])]


@rule("_native_batch_norm_legit.no_stats")
def weight_standardization(walk: Walk, node: Node) -> Dims | list[Dims]:
    """A weight (1 o n), normalised per filter by timm's StdConv2d: statistics over n = inputs x taps."""
    x = walk.of(node.args[0])
    _follow(walk, node, (x[1],), *node.args[1:3])
    if len(x) != 3:
        return walk.frozen(node, f"statistics of the batch in {walk.where(node)}")
    walk.sites.append(Site(node, "standardize", 0, 2, x[2]))
    return [x, *(tuple(Fix(int(size)) for size in value.shape) for value in node.meta["val"][1:])]


@rule("layer_norm.default")
def layer_norm(walk: Walk, node: Node) -> Dims | list[Dims]:
    """x (... c), weight, bias (c): statistics over the kept units of c."""
    return _last_dims(walk, node, "layer_norm", list(node.args[2:4]))


@rule("rms_norm.default")
def rms_norm(walk: Walk, node: Node) -> Dims | list[Dims]:
    """x (... c), weight (c): mean square over the kept units of c."""
    return _last_dims(walk, node, "rms_norm", [argument(node, 2)])


def _last_dims(walk: Walk, node: Node, how: str, parameters: list[Any]) -> Dims | list[Dims]:
    x, shape = walk.of(node.args[0]), cast(Sequence[int], node.args[1])
    normalised = x[len(x) - len(shape) :]
    if len(normalised) > 1 and any(map(free, normalised)):
        return walk.frozen(node, f"a norm over several dimensions at once: {walk.where(node)}")
    _follow(walk, node, normalised, *parameters)
    walk.sites.append(Site(node, how, 0, len(x) - 1, x[-1]))
    walk.sizes(node, 1, normalised)
    return x


@rule("instance_norm.default")
def instance_norm(walk: Walk, node: Node) -> Dims:
    """x (b c ...), weight, bias, mean, variance (c): statistics of each channel of each image."""
    x = walk.of(node.args[0])
    _follow(walk, node, (x[1],), *node.args[1:5])
    return x


@rule("group_norm.default")
def group_norm(walk: Walk, node: Node) -> Dims:
    """x (b (g k) ...): whole groups can go, and the same positions k inside every group."""
    x, groups = walk.of(node.args[0]), int(cast(int, node.args[1]))
    group, inside = factorize(x[1], groups, x[1].size // groups)
    _follow(walk, node, (x[1],), argument(node, 2), argument(node, 3))
    walk.sites.append(Site(node, "group_norm", 0, 1, inside))
    walk.sizes(node, 1, group)
    return x
