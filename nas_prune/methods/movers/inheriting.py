"""Inheriting: of every choice the first candidate trains alone, and at the end the others start from its weights.

So a penalty can make a convolution ready for what takes its place: with the penalty ``structural``, a structured
convolution gets alpha = A^+ W of what has become structured, and computes almost the same (Bhalgat et al., NeurIPS
2020, arXiv 2008.02454: train with the penalty, swap, fine-tune). That a criterion may then say which layers are swapped
is ours.
"""

from nas_prune.base.errors import SpaceError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.mask import Mask
from nas_prune.methods.movers.mover import Aim, Mover, movers
from nas_prune.ops.choice import choices_of, inherit


@movers.register("inheriting")
class Inheriting(Mover):
    """Needs gates called ``mask`` on choices; SpaceError for others, which would learn from one candidate alone."""

    def __init__(self, gated: GatedModel, aim: Aim) -> None:
        super().__init__(gated, aim)
        if not all(isinstance(gated.gate(choice), Mask) for choice in gated.space.choices):
            raise SpaceError(
                "the mover inheriting trains the first candidate of each choice alone, from which no gate can learn: "
                "set gate.name, or gate.kinds.operation.name, to mask, and a search.criterion"
            )
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:  # noqa: ARG002
        """Let the first candidates compute alone, whatever was evaluated since."""
        for choice in choices_of(self.gated.backbone):
            choice.live = list(choice.candidates)[:1]

    def finished(self) -> None:
        """Let the others take over what has been learnt, and compute."""
        for choice in choices_of(self.gated.backbone):
            choice.live = None
        inherit(self.gated.backbone)
