"""Compensation (ours): the unit that stays takes over what the layers after it read of one that goes.

Where a closed unit u and its twin j say alike, u = f j with f = <u, j> / <j, j> over what a layer reads of them, so the
columns of that layer's weight that read j take over f times those that read u. Of twins that say the same, f = 1 and
nothing is lost at all.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.roles.writers import unit_of

Twins = Mapping[str, Mapping[int, int]]  # axis -> unit that goes -> unit that takes over


def merged(gated: GatedModel, moments: Mapping[tuple[str, str], Tensor], twins: Twins) -> dict[str, Tensor]:
    """Weights of the layers that read the axes, with what was taken over. ``moments``: as ``moments_of`` finds them."""
    state = gated.backbone.state_dict()
    edits: dict[str, Tensor] = {}
    for (name, tensor), moment in moments.items():
        columns, weight = _columns(gated, name, tensor), edits.get(tensor, state[tensor].clone())
        for gone, stays in twins.get(name, {}).items():
            factor = moment[gone, stays] / moment[stays, stays] if moment[stays, stays] > 0 else 0.0
            weight[:, columns[stays]] += (factor * weight[:, columns[gone]]).to(weight)
        if twins.get(name):
            edits[tensor] = weight
    return edits


def moments_of(gated: GatedModel, batches: Batches) -> dict[tuple[str, str], Tensor]:
    """(axis, weight that reads it) -> how much each two units (c c) agree in what is read, over all images."""
    places = [(name, each) for name in gated.space.free for each in _readers(gated, name)]
    found: dict[tuple[str, str], Tensor] = {}
    with evaluating(gated), torch.no_grad(), ExitStack() as stack:
        for name, tensor in places:

            def before(layer: nn.Module, given: tuple[Any, ...], name: str = name, tensor: str = tensor) -> None:
                x = given[0].movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1)
                rows = x[_columns(gated, name, tensor).to(x.device)].flatten(1).double()
                found[name, tensor] = found.get((name, tensor), 0.0) + rows @ rows.T

            layer = gated.backbone.get_submodule(tensor.removesuffix(".weight"))
            stack.callback(layer.register_forward_pre_hook(before).remove)
        for images, _ in batches:
            gated.opened()(images)
    return {place: moment.cpu() for place, moment in found.items()}


def _readers(gated: GatedModel, name: str) -> list[str]:
    """The weights of convolutions and linear layers that read all columns of an axis' units in one dimension."""
    found = []
    for member in gated.axes[name].members:
        path = member.tensor.removesuffix(".weight")
        if member.role == "read" and member.dim == 1 and path != member.tensor:
            layer = gated.backbone.get_submodule(path)
            whole = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
            found += [member.tensor] if whole else []
    return found


def _columns(gated: GatedModel, name: str, tensor: str) -> Tensor:
    """The columns (c n) of a weight that read each unit."""
    variable = next(var for var, known in gated.axes.variables.items() if known == name)
    unit = unit_of(gated.axes.tensors[tensor][1], variable)
    order = unit.argsort(stable=True)[int((unit < 0).sum()) :]
    return order.reshape(gated.axes[name].size, -1)
