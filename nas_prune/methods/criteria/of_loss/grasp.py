"""GraSP: a weight matters as much as the gradient flow would fall if it were removed.

Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow" (arXiv 2002.07376, equations 6 to 8):
removing a weight changes |g|^2, g the gradient of the loss, by twice -w (H g), H the Hessian, at first order. The paper
removes the weights of the highest -w (H g); so the score to keep is

    s_j = w_j (H g)_j

of either sign, H and g being those of all matrices (convolution and linear weights), and of logits divided by a
``temperature`` (200 in the authors' code), which evens probabilities out.

Ours: a unit scores the sum over all weights that write it; the loss is the mean over all images of the batches; the
model is in eval mode, so it is that of the network which is derived, but for norms that have learnt nothing (see
``random_weights``); and all is computed in float64, of a copy, since a unit's weights are of either sign and cancel.

Cost: two forward and three backward passes per batch, in float64.
"""

from pydantic import PositiveFloat
from torch import Tensor

from nas_prune.methods.criteria.criterion import at_least_one, criteria, float64_copy
from nas_prune.methods.criteria.of_loss.twice import twice_differentiable
from nas_prune.methods.criteria.of_loss.weights import (
    added,
    along,
    share_of_loss,
    slopes,
    sums_of_units,
    weights_of,
)
from nas_prune.methods.criteria.random_weights import awake
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches

TEMPERATURE = 200.0


@criteria.register("grasp")
def grasp(gated: GatedModel, batches: Batches, *, temperature: PositiveFloat = TEMPERATURE) -> dict[str, Tensor]:
    """Scores (c) per free axis: by how much closing a unit would make the gradient smaller (above 0) or larger.

    Raises DataError without a batch, DivergedError where a gradient is not a number.
    """
    fixed = at_least_one(batches, "GraSP")
    copied = float64_copy(gated)
    weights = weights_of(copied)
    known = {id(each) for each in weights.values()}
    matrices = {name: each for name, each in copied.backbone.named_parameters() if each.ndim > 1}
    weights |= {name: each for name, each in matrices.items() if id(each) not in known}
    sizes, gradient, curved = [len(labels) for _, labels in fixed], None, None
    images = sum(sizes)
    with awake(copied, min(sizes)), twice_differentiable():
        for batch in fixed:
            gradient = added(gradient, slopes(_share(copied, batch, images, temperature), weights))
        for batch in fixed:
            first = slopes(_share(copied, batch, images, temperature), weights, again=True)
            curved = added(curved, slopes(along(first, gradient or {}), weights))
    found = sums_of_units(copied, {name: weights[name].detach() * each for name, each in (curved or {}).items()})
    like = next(gated.backbone.parameters())
    return {name: each.to(like.dtype) for name, each in found.items()}


def _share(copied: GatedModel, batch: tuple[Tensor, Tensor], images: int, temperature: float) -> Tensor:
    """What a batch adds to the loss of the copy."""
    x, labels = batch
    return share_of_loss(copied, (x.double() if x.is_floating_point() else x, labels), images, temperature)
