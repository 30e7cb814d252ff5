"""Hessian: what the loss would rise by if the weights of a unit were removed, to second order, each weight by itself.

LeCun et al., "Optimal Brain Damage" (NeurIPS 1989, equation 5): at a minimum of the loss, removing a weight costs
1/2 h w^2, h its entry of the Hessian's diagonal. Here, as in Torch-Pruning's GroupHessianImportance, h is the mean over
images of the squared gradient (the empirical Fisher information):

    s_u = 1/2 sum over the weights of unit u of w^2 mean over n of (dL_n / dw)^2

Ours: the weights are those that write a unit; the model is in eval mode; and the squares of all images count, where
the accumulation in Torch-Pruning keeps those of the last alone.

Cost: a forward and a backward pass per image.
"""

from pydantic import PositiveInt
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria, one_by_one
from nas_prune.methods.criteria.of_loss.weights import (
    added,
    learning,
    share_of_loss,
    slopes,
    sums_of_units,
    weights_of,
)
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating

IMAGES = 256  # ours


@criteria.register("hessian")
def hessian(gated: GatedModel, batches: Batches, *, images: PositiveInt = IMAGES) -> dict[str, Tensor]:
    """Scores (c) per free axis, from the first ``images`` of the batches, with a backward pass for each.

    Raises DataError without a batch, DivergedError where a gradient is not a number.
    """
    weights, squares, count = weights_of(gated), None, 0
    with evaluating(gated), learning(weights):
        for batch in one_by_one(batches, images, "the Hessian's diagonal"):
            slope = slopes(share_of_loss(gated, batch, 1), weights)
            squares, count = added(squares, {name: each.square() for name, each in slope.items()}), count + 1
    found = {name: weights[name].detach().square() * each / (2 * count) for name, each in (squares or {}).items()}
    return sums_of_units(gated, found)
