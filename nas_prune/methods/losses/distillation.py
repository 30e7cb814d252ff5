"""Distillation: imitate the dense parent's softened answers (Hinton et al., arXiv 1503.02531).

    T^2 * KL(softmax(teacher / T) || softmax(student / T))

With T^2 gradients keep their size whatever the temperature, as the paper notes. ``finetune.distill`` mixes it with the
loss of the labels; named as a loss of its own it learns from the teacher alone.

And imitate what its classifier reads: a student that takes over the teacher's classifier needs no more (SimKD, Chen et
al., arXiv 2203.14001), and one that was pruned has that already, and units which are units of the teacher. So here, and
this is ours, no projection is learnt: with f of the student and t of the teacher in the same units,

    |f - t|^2 / |t|^2
"""

from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.errors import RecipeError
from nas_prune.methods.losses.loss import Loss, Said, losses


@losses.register("distillation")
class Distillation(Loss):
    """``temperature``: T. Raises RecipeError, when it is called, where there is no teacher."""

    def __init__(self, smoothing: float = 0.0, *, temperature: float = 2.0) -> None:
        super().__init__(smoothing)
        self.temperature = temperature

    def forward(self, said: Said, targets: Tensor) -> Tensor:  # noqa: ARG002
        """The loss, (), the mean over the batch; targets are not looked at."""
        if said.teacher is None:
            raise RecipeError("the loss distillation needs a teacher: set finetune.distill, or search.distill, above 0")
        wanted = F.log_softmax(said.teacher.logits.float() / self.temperature, -1)
        given = F.log_softmax(said.logits.float() / self.temperature, -1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * self.temperature**2


def unlikeness(said: Said) -> Tensor:
    """How far what the classifier reads is from what that of the teacher reads in the same units, as a share, ()."""
    read, teacher = said.read, said.teacher
    assert read is not None
    assert teacher is not None
    assert teacher.read is not None
    wanted = teacher.read.float()
    return (read.float() - wanted).square().mean() / wanted.square().mean()
