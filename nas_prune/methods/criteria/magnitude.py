"""Magnitude: a unit matters as much as the weights that write it are long (Li et al., arXiv 1608.08710, of L1)."""

from typing import Literal

import torch
from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.methods.criteria.criterion import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches


@criteria.register("magnitude")
def magnitude(gated: GatedModel, batches: Batches, *, norm: Literal[1, 2] = 2) -> dict[str, Tensor]:  # noqa: ARG001
    """Scores (c) per free axis: the norm of all weights that write a unit; batches are not looked at.

    Raises SpaceError for a branch, a candidate or a stripe, which no weight writes.
    """
    odd = [name for name in gated.space.free if not gated.weights(name)]
    if odd:
        raise SpaceError(
            f"magnitude cannot score {', '.join(odd[:3])}, which no weight writes; choose another criterion"
        )
    return {name: torch.cat(gated.weights(name), 1).detach().norm(norm, dim=1) for name in gated.space.free}
