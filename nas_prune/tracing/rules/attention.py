"""Scaled dot-product attention: head_dim is contracted by q.k, heads are batch dimensions.

The scale of the dense model is kept when head_dim shrinks; otherwise the function would change.
"""

from math import sqrt

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims
from nas_prune.tracing.walk import Site, Walk


@rule("scaled_dot_product_attention.default")
def attention(walk: Walk, node: Node) -> Dims:
    """q (... n e), k (... s e), v (... s d), mask (... n s) -> (... n d)."""
    q, k, v = (walk.of(value) for value in node.args[:3])
    walk.tie(node, q[-1], k[-1])
    walk.tie(node, k[-2], v[-2])
    batch = walk.broadcast(node, q[:-2], k[:-2], v[:-2])
    if len(node.args) > 3 and node.args[3] is not None:
        walk.broadcast(node, (*batch, q[-2], k[-2]), walk.of(node.args[3]))
    walk.sites.append(Site(node, "mask", 0, len(q) - 1, q[-1]))
    walk.sites.append(Site(node, "attention", 1, len(k) - 2, k[-2]))
    if node.kwargs.get("scale") is None:
        walk.constants[node] = {"scale": 1 / sqrt(q[-1].size)}
    walk.kinds += [(term, "head") for term in batch[1:]] + [(q[-1], "head_dim"), (v[-1], "head_dim")]
    walk.products[node] = [(*batch, q[-2], k[-2], q[-1]), (*batch, q[-2], k[-2], v[-1])]
    return (*batch, q[-2], v[-1])
