"""Distillation: imitate the dense parent's softened answers (Hinton et al., arXiv 1503.02531).

    T^2 * KL(softmax(teacher / T) || softmax(student / T))

With T^2 gradients keep their size whatever the temperature, as the paper notes. ``finetune.distill`` mixes it with the
loss of the labels; named as a loss of its own it learns from the teacher alone.
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
            raise RecipeError(
                "the loss distillation needs a teacher; only finetune has one, with finetune.distill above 0"
            )
        wanted = F.log_softmax(said.teacher.float() / self.temperature, -1)
        given = F.log_softmax(said.logits.float() / self.temperature, -1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * self.temperature**2
