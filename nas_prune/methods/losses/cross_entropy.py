"""Cross-entropy with label smoothing: one of the classes is the right one."""

from torch import Tensor
from torch.nn import functional as F

from nas_prune.methods.losses.loss import Loss, Said, losses


@losses.register("cross_entropy")
class CrossEntropy(Loss):
    """Smooths labels; targets that mixup has made are smoothed already."""

    def forward(self, said: Said, targets: Tensor) -> Tensor:
        """The loss, (), the mean over the batch."""
        smoothing = 0.0 if targets.ndim == 2 else self.smoothing
        return F.cross_entropy(said.logits, targets, label_smoothing=smoothing)
