"""Which weights read an axis: where nothing else reads it, a factor of a unit can be moved into them."""

from torch.fx import Node

from nas_prune.tracing.axes import Axes
from nas_prune.tracing.terms import Term, identity, leaves


def readers(axes: Axes, name: str) -> dict[str, Term]:
    """Weight (o i ...) -> what its input dimension consists of, of all weights that read an axis.

    Nothing, where something else reads it as well (a norm, attention, a sum), or a weight is not read as it is.
    """
    captured, found = axes.walk.captured, dict[str, Term]()
    reading = [site for site in axes.walk.sites if name in {axes.variables.get(var) for var in leaves(site.term)}]
    nodes = {site.node for site in reading}
    for site in reading:
        weight = site.node.args[1] if len(site.node.args) > 1 else None
        if site.how != "mask" or site.weight is None or not isinstance(weight, Node):
            return {}
        tensor = captured.tensors.get(weight.name)
        if tensor is None or not set(weight.users) <= nodes:
            return {}
        if identity(found.setdefault(tensor, site.weight)) != identity(site.weight):
            return {}
    return found
