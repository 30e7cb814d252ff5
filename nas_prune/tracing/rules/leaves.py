"""Leaves: modules that no graph can say stay as they are, and so does all that goes in and comes out."""

from torch.fx import Node

from nas_prune.tracing.graph.leaves import leaf_of
from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix
from nas_prune.tracing.walk import Walk


@rule("leaf.default")
def leaf(walk: Walk, node: Node) -> Dims | list[Dims]:
    """Tensors of a module and what it is given -> what it returns."""
    call = leaf_of(node)
    assert call is not None
    walk.products[node] = [(Fix(call.macs),)] if call.macs else []
    return walk.frozen(node, call.why)
