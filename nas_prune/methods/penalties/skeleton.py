"""The L1 penalty on Filter Skeletons, alpha * sum |FS|, which lets stripes die (arXiv 2009.14410).

Its sub-gradient is alpha * sign(FS) on what lives and nothing on what is dead, as in the paper's code.
"""

import torch
from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.skeleton import Skeleton
from nas_prune.methods.penalties.penalty import Penalty, penalties


@penalties.register("skeleton")
class SkeletonPenalty(Penalty):
    """``alpha``: 1e-5 in the paper's code, for 160 epochs at a learning rate of 0.1; more for shorter training.

    The sum knows no budget; how much dies is for alpha, or for a budget penalty beside it. Raises SpaceError, when it
    is called, for a model without skeletons.
    """

    def __init__(self, budget: Budget | None = None, *, alpha: float = 1e-5) -> None:  # noqa: ARG002
        super().__init__()
        self.alpha = alpha

    def forward(self, gated: GatedModel) -> Tensor:
        """The penalty, (), for the skeletons as they are."""
        skeletons = [gate for gate in gated.gates.modules() if isinstance(gate, Skeleton)]
        if not skeletons:
            raise SpaceError("the penalty `skeleton` needs gates of that name: set `gate.name: skeleton`")
        sums = [gate.skeleton.abs().where(gate.live, 0).sum() for gate in skeletons]
        return self.alpha * torch.stack(sums).sum()
