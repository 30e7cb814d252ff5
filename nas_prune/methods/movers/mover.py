"""What a mover is: it moves gates or weights between steps and epochs, beside the optimizer. Its state is saved."""

from dataclasses import dataclass

from torch import nn

from nas_prune.base.registry import Registry
from nas_prune.costs import Budget
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.schedules import Schedule
from nas_prune.tracing.arch import Arch


@dataclass(frozen=True)
class Aim:
    """Where a mover goes: the budget, which holds all limits, in how many epochs, by which schedule."""

    budget: Budget
    epochs: int
    schedule: Schedule


class Still(nn.Module):
    """Moves nothing."""

    def begin_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch (0-based)."""

    def after_step(self) -> None:
        """After every step of the optimizers."""

    def after_epoch(self, epoch: int) -> None:
        """After the last step of an epoch, before it is evaluated and saved."""


class Mover(Still):
    """Called by the loop of joint training. Buffers are part of every checkpoint; options are keyword-only.

    A run that is stopped goes on from its last checkpoint, so what a hook does must follow from the weights, the
    buffers and its arguments alone.
    """

    def __init__(self, gated: GatedModel, aim: Aim) -> None:
        super().__init__()
        self._gated, self.aim = (gated,), aim  # in a tuple: the model is no part of this module

    def follow(self, gated: GatedModel, kept: Arch) -> None:  # noqa: ARG002
        """Move ``gated`` from now on, which is what was left when all units but those ``kept`` were removed."""
        self._gated = (gated,)

    def finished(self) -> None:
        """After joint training, before units are scored; again where a run that was stopped since goes on."""

    def left(self) -> Arch:
        """The units that it has not closed for good; the others may be removed."""
        return Arch()

    @property
    def gated(self) -> GatedModel:
        """The model that it moves."""
        return self._gated[0]


movers: Registry[type[Mover]] = Registry("mover", __package__)
