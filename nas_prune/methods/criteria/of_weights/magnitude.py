"""Magnitude: a unit matters as much as the weights that write it are long (Li et al., arXiv 1608.08710, of L1).

Ours: of a branch or a candidate, which no weight writes, norms say nothing; it scores as the best unit does, and stays.

Cost: weights are read once.
"""

from typing import Literal

import torch
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches


@criteria.register("magnitude")
def magnitude(gated: GatedModel, batches: Batches, *, norm: Literal[1, 2] = 2) -> dict[str, Tensor]:  # noqa: ARG001
    """Scores (c) per free axis: the norm of all weights that write a unit together; batches are not looked at."""
    rows = {name: gated.weights(name) for name in gated.space.free}
    return with_the_rest(
        gated, {name: torch.cat(each, 1).detach().norm(norm, dim=1) for name, each in rows.items() if each}
    )
