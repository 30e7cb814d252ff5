"""LAMP: a norm, as a share of all norms of its axis that are at least as large, so that axes can be compared.

Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (arXiv 2010.07611, equation 1), of weights:

    score(u) = w_u^2 / sum of w_v^2 over all v of the layer with w_v^2 >= w_u^2

The largest one scores 1 whatever its scale, so no layer is emptied while others have more than one left.
Ours: units in place of weights, w_u being the norm of all weights that write a unit; units of equal norm score alike
(the paper breaks ties by order); what no weight writes scores 1, and stays.

Cost: weights are read once.
"""

import torch
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria, with_the_rest
from nas_prune.methods.criteria.of_weights.magnitude import magnitude
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches


@criteria.register("lamp")
def lamp(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:
    """Scores (c) per free axis, in [0, 1]; batches are not looked at."""
    norms = magnitude(gated, batches)
    written = [name for name in gated.space.free if gated.weights(name)]
    return with_the_rest(gated, {name: _share(norms[name].double().square()) for name in written})


def _share(square: Tensor) -> Tensor:
    """Of each (c), its share in the sum of those that are as large; 0 where it is 0."""
    descending = square.sort(descending=True).values
    through = descending.cumsum(0)
    last = torch.searchsorted(-descending, -square, right=True) - 1  # the last one that is as large
    return (square / through[last]).nan_to_num(0.0)
