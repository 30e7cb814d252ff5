"""Taylor importance: what the loss would change by if a unit were closed, to first order.

Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771). A gate z = 1 multiplies each
unit, and the unit's importance is the square of the loss's gradient with respect to it (section 3, the gate form):

    I_m = (dE / dz_m)^2 = (sum of g_s w_s over the weights s that the gate multiplies)^2

squared per minibatch and averaged over minibatches, as in the paper. Ours: the gates are those of the package, which
act where an axis is read, so one number covers all that an axis runs through (residual stages, heads); the model is
in eval mode, so the loss is that of the network which is derived; and ``power=1`` leaves the magnitude |dE / dz_m|,
which is in the unit of the loss and so adds up over units (what the selector "optimal" maximises).

Cost: a forward and a backward pass per batch.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.errors import DataError, DivergedError
from nas_prune.methods.criteria.criterion import criteria
from nas_prune.methods.fixed import Fixed
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating


@criteria.register("taylor")
def taylor(gated: GatedModel, batches: Batches, *, power: Literal[1, 2] = 2) -> dict[str, Tensor]:
    """Scores (c) per free axis, all units open, of the mean cross-entropy of each batch.

    Raises DataError without a batch, DivergedError where a loss or a gradient is not a number.
    """
    return slopes_of(gated, batches, power)


def slopes_of(gated: GatedModel, batches: Batches, power: Literal[1, 2] = 1) -> dict[str, Tensor]:
    """|dE / dz| (c) per free axis, or its square, a mean over the batches; for other criteria, too."""
    opened = gated.opened(requires_grad=True)
    totals = {name: torch.zeros_like(keep) for name, keep in opened.keep().items()}
    count = 0
    with evaluating(gated):
        for images, labels in batches:
            count += 1
            for name, gradient in _gradients(opened, images, labels).items():
                totals[name] += gradient.abs() ** power
    if count == 0:
        raise DataError("Taylor scores need at least one batch of images and labels; there was none")
    return {name: total / count for name, total in totals.items()}


def _gradients(opened: Fixed, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss with respect to each unit's gate (c), all gates being one."""
    keep = opened.keep()
    with torch.enable_grad():
        loss = F.cross_entropy(opened(images), labels)
        gradients = torch.autograd.grad(loss, list(keep.values()), allow_unused=True, materialize_grads=True)
    found = dict(zip(keep, gradients, strict=True))
    lost = next((name for name, each in found.items() if not bool(each.isfinite().all())), None)
    if lost is not None or not bool(loss.isfinite()):
        raise DivergedError(
            f"the loss or its gradient is not a number{f' at axis {lost}' if lost else ''}; "
            f"check the images, the labels and the weights that Taylor scores are computed from"
        )
    return found
