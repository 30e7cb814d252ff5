"""Recurrent layers: the features that go in are an axis, and so is the hidden state, which every step reads whole.

All layers and directions of one module share one width, which its ``hidden_size`` names; here they share units, too.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix, Term, Var, cat, freeze, prod
from nas_prune.tracing.walk import Site, Walk, operator


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(walk: Walk, node: Node) -> list[Dims]:
    """x (... i), states (l b h), and per layer and direction ((g h) i), ((g h) h), biases -> (... (d h)), states."""
    x, weights = walk.of(node.args[0]), cast(Sequence[Node], node.args[2])
    biased, layers, bidirectional = (node.args[index] for index in (3, 4, 7))
    directions, step = 2 if bidirectional else 1, 4 if biased else 2
    each = len(weights) // (cast(int, layers) * directions)
    walk.sites.append(Site(node, "mask", 0, len(x) - 1, x[-1]))
    if each != step:
        return _projected(walk, node, x[-1], weights[: each * directions : each])
    shapes = [tuple(int(size) for size in value.shape) for value in node.meta["val"]]
    hidden: Term = Var(shapes[1][-1])
    walk.products[node] = []
    for first in range(0, len(weights), step):
        incoming = x[-1] if first < step * directions else cat([hidden] * directions)
        _tie(walk, node, weights[first : first + step], (incoming, hidden))
    for state in node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]:
        _begin(walk, node, state, hidden)
    walk.sites.append(Site(node, "recurrent", 2, 0, hidden))
    last: list[Dims] = [(*map(Fix, shape[:-1]), hidden) for shape in shapes[1:]]
    return [(*x[:-1], cat([hidden] * directions)), *last]


def _tie(walk: Walk, node: Node, weights: Sequence[Node], reads: tuple[Term, Term]) -> None:
    """The weights and biases of one layer in one direction: their rows write gates, their columns read."""
    hidden = reads[1]
    for position, weight in enumerate(weights):
        own = walk.of(weight)
        walk.tie(node, own[0], prod([Fix(own[0].size // hidden.size), hidden]))
        if position < len(reads):
            walk.role(weight, 0, "write")
            walk.role(weight, 1, "read")
            walk.tie(node, own[1], reads[position])
            walk.products[node].append((*walk.of(node.args[0])[:-1], *own))


def _begin(walk: Walk, node: Node, state: Any, hidden: Term) -> None:
    """The state at the beginning: given, or zeros that the module makes as wide as it is."""
    dims = walk.of(state)
    if operator(state) == "zeros.default" and set(state.users) == {node}:
        walk.terms[state] = (*dims[:-1], hidden)
        walk.sizes(state, 0, walk.terms[state])
    else:
        walk.tie(node, dims[-1], hidden)


def _projected(walk: Walk, node: Node, features: Term, first: Sequence[Node]) -> list[Dims]:
    """A state that is projected, and then read: it stays as it is. ``first``: the weights that read the features."""
    own = {weight: walk.of(weight) for weight in node.all_input_nodes if weight is not node.args[0]}
    for weight in first:
        walk.role(weight, 1, "read")
        walk.tie(node, features, own[weight][1])
    for weight, dims in own.items():
        for term in dims[: 1 if weight in first else None]:
            freeze(term, f"the projected state of {walk.where(node)}")
    return [tuple(Fix(int(size)) for size in value.shape) for value in node.meta["val"]]
