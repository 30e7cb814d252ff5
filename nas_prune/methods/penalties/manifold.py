"""The manifold penalty of ManiDP: easy images pay for the channels that they keep, and like images keep like ones.

Tang et al., "Manifold Regularized Dynamic Network Pruning" (CVPR 2021, arXiv 2103.05861), as in the public code:

    sparsity   * sum_l mean_n ( w_n mean_c pi_l[n, c] ),   w_n = 1[CE_n < q C] ((q C - CE_n) / (q C))^power
  + similarity * sum_l || cos(F_l) - cos(Pi_l) ||_F^2 / b^2

with pi the saliencies before the threshold, F the means of the features that they gate, cos the Gram matrix of rows of
length one, CE_n the loss of an image, and C its mean in the epoch before. Ours: w_n is a constant (in the public code
its gradient raises the loss of easy images), and in the first epoch C is the mean so far, of each process by itself,
where the public code takes a pass over all images beforehand. Afterwards it is that of the images of all processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.dynamic import Dynamic
from nas_prune.methods.losses import Said
from nas_prune.methods.penalties.penalty import Penalty, penalties


@penalties.register("manifold")
class ManifoldPenalty(Penalty):
    """``sparsity``, ``similarity``: the two weights, as for ResNet-56 in the public code. ``easy``: q. The penalty
    knows no budget. Raises SpaceError, when it is called, for a model whose gates do not look at images.
    """

    total: Tensor
    images: Tensor
    usual: Tensor
    epoch: Tensor
    weight: Tensor

    def __init__(
        self,
        budget: Budget | None = None,  # noqa: ARG002
        *,
        sparsity: float = 5e-3,
        similarity: float = 1.0,
        easy: float = 0.5,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.sparsity, self.similarity, self.easy, self.power = sparsity, similarity, easy, power
        for name in ("total", "images", "usual", "epoch"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("weight", torch.ones(()), persistent=False)

    def advance(self, epochs: float) -> None:
        """With an epoch, its mean loss becomes the usual one."""
        passed = self.epoch < int(epochs)  # all of it in tensors, which wait for no device
        heard = torch.stack([self.total, self.images])
        if epochs == int(epochs) and dist.is_available() and dist.is_initialized():
            dist.all_reduce(heard)
        self.usual.copy_(torch.where(passed, heard[0] / heard[1].clamp(min=1), self.usual))
        self.total *= ~passed
        self.images *= ~passed
        self.epoch.clamp_(min=int(epochs))

    @torch.no_grad()
    def hear(self, said: Said, targets: Tensor) -> None:
        """What each image pays per channel (b)."""
        logits = said.logits.to(torch.promote_types(said.logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, targets, reduction="none")
        self.total += losses.sum()
        self.images += len(losses)
        usual = torch.where(self.epoch > 0, self.usual, self.total / self.images)
        self.weight = ease(losses, self.easy * usual, self.power)

    def forward(self, gated: GatedModel) -> Tensor:
        """The penalty, (), for what the gates have seen in the last forward pass of training."""
        found = [gate.looked for gate in gated.gates.modules() if isinstance(gate, Dynamic)]
        if not found:
            raise SpaceError("the penalty `manifold` needs gates that look at images: set `gate.name: dynamic`")
        terms = [self._of(each.saliency, each.features) for each in found if each.saliency is not None]
        return torch.stack(terms).sum() if terms else self.total.new_zeros(())

    def _of(self, saliency: Tensor, features: Tensor | None) -> Tensor:
        """The term of one layer."""
        sparse = (self.weight * saliency.mean(1)).mean()
        return self.sparsity * sparse + (0.0 if features is None else self.similarity * unlike(features, saliency))


def ease(losses: Tensor, limit: Tensor, power: float) -> Tensor:
    """How easy each image is (b): 1 for a loss of nothing, 0 from the limit on."""
    return ((limit - losses) / limit.clamp(min=torch.finfo(losses.dtype).tiny)).clamp(min=0) ** power


def unlike(features: Tensor, saliency: Tensor) -> Tensor:
    """How far the likeness of images by their features (b n) is from that by their saliencies (b c), ()."""
    grams = [rows @ rows.T for rows in (F.normalize(each, dim=1) for each in (features, saliency))]
    return (grams[0] - grams[1]).square().sum() / len(features) ** 2
