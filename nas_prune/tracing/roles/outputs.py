"""What the dimensions of a module's output mean: for those who read it from outside the graph."""

from torch.fx import Node

from nas_prune.base.errors import TraceError
from nas_prune.tracing.axes import Axes
from nas_prune.tracing.terms import Dims
from nas_prune.tracing.walk import Site


def output_dims(axes: Axes, path: str) -> Dims:
    """The terms of what a module gives; of several calls, the last."""
    return tuple(axes.walk.terms[_output(axes, path)])


def output_sites(axes: Axes, path: str) -> list[Site]:
    """Where one who reads the output of a module reads axes."""
    node = _output(axes, path)
    return [Site(node, "mask", 0, dim, term) for dim, term in enumerate(axes.walk.terms[node])]


def _output(axes: Axes, path: str) -> Node:
    """The node that gives what a module returns. Raises TraceError where it computes nothing, or several tensors."""
    captured = axes.walk.captured

    def inside(node: Node) -> bool:
        return path in captured.running(node).values()

    nodes: list[Node] = [node for node in captured.graph.nodes if isinstance(axes.walk.terms.get(node), tuple)]
    tensors = [node for node in nodes if inside(node) and not all(map(inside, node.users))]
    if not tensors:
        raise TraceError(f"the output of {path!r} is nothing that it computes; name the module before it")
    return tensors[-1]
