"""Take closed units out of a model that goes on learning.

``derive`` makes the smaller model, and where every number of it stood before is known (``places``): so whatever is kept
per weight, the momentum of an optimizer or an average, can go along, and the weights can be put back. Ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.derivation.derive import derive
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import parametrized
from nas_prune.tracing.graph.multihead import open_up
from nas_prune.tracing.roles.writers import numbered
from nas_prune.tracing.space import SearchSpace

Places = Mapping[str, Tensor]  # name of a tensor -> for each of its numbers, where it was in the one before, flattened


@dataclass(frozen=True)
class Removal:
    """``small``: a plain model of the units ``kept``; ``places``: of its parameters and buffers."""

    small: nn.Module
    kept: Arch
    places: Places


def irremovable(model: nn.Module, space: SearchSpace) -> str | None:
    """Why closed units of this space cannot be taken out of a model that goes on learning; None where they can."""
    if any(axis.kind in ("stripe", "operation") for axis in space.free.values()):
        return f"search space {space.name} has stripes or candidate operations, not widths and branches alone"
    if space.axes.scales:
        return "its code computes a scale from a width, for which the weights of a smaller model make up"
    return "some of its weights are computed from others" if parametrized(model) else None


def removed(gated: GatedModel, kept: Arch) -> Removal:
    """The backbone without the units that ``kept`` leaves out. Raises SpaceError where it is irremovable."""
    why = irremovable(gated.backbone, gated.space)
    if why is not None:
        raise SpaceError(f"closed units of {type(gated.backbone).__name__} cannot be removed while it learns: {why}")
    small = derive(gated.backbone, gated.axes, kept)
    open_up(small)
    left, places = small.state_dict().keys(), dict[str, Tensor]()
    for name, tensor in gated.backbone.state_dict().items():
        if name in left:
            dims = gated.axes.tensors.get(name, ())
            places[name] = gated.axes.take(numbered(tensor), dims, kept)
    return Removal(small, kept, places)


@torch.no_grad()
def put_back(model: nn.Module, small: nn.Module, places: Places) -> None:
    """Write the numbers of a smaller model to their places in the larger one."""
    state = model.state_dict()
    for name, tensor in small.state_dict().items():
        whole = state[name].flatten().clone()  # its numbers may lie in another order, as channels last
        whole[places[name].flatten().to(tensor.device)] = tensor.flatten()
        state[name].copy_(whole.reshape(state[name].shape))
