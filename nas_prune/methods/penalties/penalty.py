"""What a penalty is: a term added to the task loss. A module, so that its state is saved with a checkpoint."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from nas_prune.base.registry import Registry
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses import Said


class Penalty(nn.Module):
    """``penalty(gated)``: the term, (), for the last forward pass of a gated model. Made for a budget.

    ``to_scale``: steps have to be in proportion to its gradient, so no optimizer may divide that by its size, nor may
    it be clipped.
    """

    to_scale: ClassVar[bool] = False

    def begin(self, gated: GatedModel) -> None:
        """Told which model it will look at, before its first step, and before a state is put back."""

    def follow(self, before: Penalty) -> None:
        """Go on as the penalty of the round before."""
        self.load_state_dict(before.state_dict())

    def aim(self, limit: float) -> None:
        """What the network may cost from this step on, in the unit of the budget, where the limit slides."""

    def advance(self, epochs: float) -> None:
        """So many epochs of the joint training have passed; told before every step of it."""

    def hear(self, said: Said, targets: Tensor) -> None:
        """What the model said in the forward pass that the term is of, and what was right, for terms of single images;
        ``targets`` are classes (b), or probabilities (b k) after mixup."""

    def remark(self) -> str:
        """What is to be said of it when the joint training of a round has ended, in a line; empty: nothing."""
        return ""


penalties: Registry[type[Penalty]] = Registry("penalty", __package__)
