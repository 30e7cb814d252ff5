"""What a penalty is: a term added to the task loss. A module, so that its state is saved with a checkpoint."""

from __future__ import annotations

from torch import nn

from nas_prune.base.registry import Registry


class Penalty(nn.Module):
    """``penalty(gated)``: the term, (), for the last forward pass of a gated model. Made for a budget."""

    def aim(self, limit: float) -> None:
        """What the network may cost from this step on, in the unit of the budget, where the limit slides."""


penalties: Registry[type[Penalty]] = Registry("penalty", __package__)
