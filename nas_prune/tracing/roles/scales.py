"""Which parameters of a network are scales of norms, and which are shifts: of norms, convolutions and linear layers.

Read off the graph, by the operators that parameters are arguments of, whatever modules call them.
"""

from collections.abc import Mapping

from torch.fx import Node

from nas_prune.tracing.axes import Axes
from nas_prune.tracing.walk import operator

SCALES = {  # operator -> which of its arguments is gamma
    "batch_norm": 1,
    "native_batch_norm": 1,
    "_native_batch_norm_legit_no_training": 1,
    "instance_norm": 1,
    "group_norm": 2,
    "layer_norm": 2,
    "rms_norm": 2,
}
SHIFTS = {name: place + 1 for name, place in SCALES.items() if name != "rms_norm"} | dict.fromkeys(
    ("conv1d", "conv2d", "conv3d", "convolution", "linear"), 2
)


def parameters(axes: Axes, places: Mapping[str, int]) -> list[str]:
    """The names of all one-dimensional parameters that stand in these places of these operators, each once."""
    captured = axes.walk.captured
    names = dict[str, None]()
    for node in captured.graph.nodes:
        place = places.get(operator(node).split(".")[0]) if node.op == "call_function" else None
        argument = node.args[place] if place is not None and len(node.args) > place else None
        if isinstance(argument, Node) and argument.name in captured.tensors:
            names[captured.tensors[argument.name]] = None
    return [name for name in names if len(axes.tensors.get(name, ())) == 1]
