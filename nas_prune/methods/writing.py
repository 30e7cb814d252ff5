"""What gates do where their axes are written: look at what a weight reads, and act on what it writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from nas_prune.base.errors import SpaceError
from nas_prune.methods.eager_calls import NODE_KINDS
from nas_prune.methods.gates import Gate
from nas_prune.tracing import Axes

Writer = tuple[str, int, Tensor | None]  # a weight, the dimension in which it writes, and the order of its rows
Written = tuple[str, int]  # an axis, and along which dimension of an output it is written
WRITING = {"convolution": 1, "linear": -1}  # kind of call -> the dimension that its weight writes


class Act:
    """What the gate of an axis does in one forward pass; ``keep``: values (c) per axis, or (b c) once it has looked."""

    def __init__(self, gate: Gate, weights: Callable[[], Sequence[Tensor]], keep: dict[str, Tensor], name: str) -> None:
        self.gate, self.weights, self.keep, self.name = gate, weights, keep, name

    def look(self, x: Tensor, dim: int) -> None:
        """At what the first writer of the axis reads, its channels along ``dim``."""
        if self.gate.looks and self.keep[self.name].ndim == 1:
            self.keep[self.name] = self.gate(self.weights(), x.movedim(dim, -1))

    def __call__(self, output: Tensor, dim: int) -> Tensor:
        """What becomes of the output of a writer."""
        if self.gate.site == "read":
            return output
        return self.gate.mix(output, along(self.keep[self.name], output, dim))


def along(keep: Tensor, x: Tensor, dim: int) -> Tensor:
    """Keep values (c), or (b c), in the shape of x along a dimension. Raises SpaceError where x is of other images."""
    if keep.ndim == 2 and len(keep) != len(x):
        raise SpaceError(
            f"a gate looked at {len(keep)} images, and is to act on {len(x)}: here, parts of images are computed by "
            "themselves; freeze the axis, or choose a gate that does not look at images"
        )
    dim %= max(1, x.ndim)
    images = len(keep) if keep.ndim == 2 else 1
    return keep.to(x.dtype).reshape([-1 if each == dim else images if each == 0 else 1 for each in range(x.ndim)])


def writing(axes: Axes, writers: Mapping[str, Sequence[Writer]]) -> Iterator[tuple[str, Node, int]]:
    """(axis, the call that writes it, the dimension of its output). Raises SpaceError for what no such call writes."""
    tensors, graph = axes.walk.captured.tensors, axes.walk.captured.graph
    for name, weights in writers.items():
        for tensor, _, order in weights:
            nodes = [user for node in graph.nodes if tensors.get(node.name) == tensor for user in node.users]
            kinds = [NODE_KINDS.get(node.target.__name__, "") if node.op == "call_function" else "" for node in nodes]
            if order is not None or not nodes or any(kind not in WRITING for kind in kinds):
                raise SpaceError(
                    f"axis {name} is not written by convolutions and linear layers alone ({tensor}), where a gate that "
                    "looks at images or acts on outputs could do so; freeze it, or choose another gate"
                )
            yield from ((name, node, WRITING[kind]) for node, kind in zip(nodes, kinds, strict=True))
        if not weights:
            raise SpaceError(f"axis {name} is written by no weight, where its gate could act; freeze it")
