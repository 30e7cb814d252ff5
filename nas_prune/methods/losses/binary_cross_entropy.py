"""Binary cross-entropy: every class is a question of its own, as in "ResNet strikes back" (arXiv 2110.00476).

There it is the sum over classes that is averaged over images; timm's loss averages over classes, too, and so does this.
"""

from torch import Tensor
from torch.nn import functional as F

from nas_prune.methods.losses.loss import Loss, Said, losses


@losses.register("binary_cross_entropy")
class BinaryCrossEntropy(Loss):
    """``threshold``: after mixup, a class that has more than this share counts as present (0.2 in the paper)."""

    def __init__(self, smoothing: float, *, threshold: float | None = None) -> None:
        super().__init__(smoothing)
        self.threshold = threshold

    def forward(self, said: Said, targets: Tensor) -> Tensor:
        """The loss, (), the mean over batch and classes."""
        logits = said.logits
        if targets.ndim == 1:
            off = self.smoothing / logits.shape[1]
            targets = F.one_hot(targets, logits.shape[1]) * (1 - self.smoothing) + off
        if self.threshold is not None:
            targets = (targets > self.threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
