"""Recurrent layers: the features that go in are an axis; the hidden state is read as a whole at every step."""

from collections.abc import Sequence
from typing import cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix, freeze
from nas_prune.tracing.walk import Site, Walk


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(walk: Walk, node: Node) -> list[Dims]:
    """x (... i), states, weights per layer and direction (first of each: (4h i)) -> outputs and last states."""
    x = walk.of(node.args[0])
    states, weights = node.args[1:3]
    _, layers, _, _, bidirectional = node.args[3:8]
    directions = 2 if bidirectional else 1
    step = len(cast(Sequence[Node], weights)) // (cast(int, layers) * directions)  # with biases or projections, or not
    first = [step * direction for direction in range(directions)]
    for index, weight in enumerate(cast(Sequence[Node], weights)):
        own = walk.of(weight)
        reads = index in first
        for term in own[: 1 if reads else None]:
            freeze(term, f"the state of {walk.where(node)}")
        if reads:
            walk.role(weight, 1, "read")
            walk.tie(node, x[-1], own[1])
    for state in states if isinstance(states, list | tuple) else [states]:
        for term in walk.of(state):
            freeze(term, f"the state of {walk.where(node)}")
    walk.sites.append(Site(node, "mask", 0, len(x) - 1, x[-1]))
    return [tuple(Fix(int(size)) for size in value.shape) for value in node.meta["val"]]
