"""Operators that pick entries by tables of indices: the dimensions looked up cannot change, the others pass."""

from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix, freeze
from nas_prune.tracing.walk import Walk


@rule("index.Tensor")
def index(walk: Walk, node: Node) -> Dims | list[Dims]:
    """x[indices], None for a whole dimension; where the results go follows NumPy."""
    x, tables = walk.of(node.args[0]), cast(Sequence[Node | None], node.args[1])
    given = [dim for dim, table in enumerate(tables) if table is not None]
    found = [cast(Node, tables[dim]) for dim in given]
    if any(table.meta["val"].dtype in (torch.bool, torch.uint8) for table in found):
        return walk.frozen(node, f"picked by a mask: {walk.where(node)}")
    why = f"looked up by {walk.where(node)}"
    for term in (*(x[dim] for dim in given), *(term for table in found for term in walk.of(table))):
        freeze(term, why)
    new = walk.broadcast(node, *(walk.of(table) for table in found))
    rest = [term for dim, term in enumerate(x) if dim not in given]
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    return (*rest[:first], *new, *rest[first:])


@rule("embedding.default")
def embedding(walk: Walk, node: Node) -> Dims:
    """weight (n c), ids (...) -> (... c)."""
    weight, ids = (walk.of(value) for value in node.args[:2])
    walk.role(node.args[0], 1, "write")
    for term in (weight[0], *ids):
        freeze(term, f"looked up by {walk.where(node)}")
    return (*ids, weight[1])


@rule("index_select.default", "gather.default", "take_along_dim.default", "select_scatter.default")
@rule("slice_scatter.default", "scatter.src", "index_copy.default")
def picked(walk: Walk, node: Node) -> Dims | list[Dims]:
    """One dimension is looked up or partly overwritten; where there is a second tensor it is tied in all others."""
    x, others = walk.of(node.args[0]), [walk.of(value) for value in node.args[1:] if isinstance(value, Node)]
    dim = next((value for value in node.args[1:] if isinstance(value, int)), 0) % len(x)
    freeze(x[dim], f"looked up by {walk.where(node)}")
    if any(len(other) == len(x) for other in others) or "scatter" in str(node.target):
        return walk.frozen(node, f"looked up by {walk.where(node)}")
    return tuple(Fix(int(size)) if d == dim else x[d] for d, size in enumerate(walk.shape(node)))


@rule("unfold.default")
def windows(walk: Walk, node: Node) -> Dims:
    """x, dim, size, step: windows of one dimension, their entries in a new last one."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    dim = cast(int, node.args[1]) % len(x)
    freeze(x[dim], f"cut into windows by {walk.where(node)}")
    return (*x[:dim], Fix(shape[dim]), *x[dim + 1 :], Fix(shape[-1]))
