"""FPGM: a unit that lies near all others of its axis can be replaced by them, however large it is.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (arXiv 1811.00250,
equations 5 to 8): filters near the geometric median of their layer go, found as those of least

    g(u) = sum over v of |W_u - W_v|_2

where W_u is all that a filter holds. Ours: W_u are the weights that write a unit, of all members that do (the paper has
one convolution). Compares units of one axis, as the paper prunes the same share of each layer: sums grow with the
number of units and their scale, so the selector ``uniform`` is the paper's. What no weight writes scores as the best.

Cost: weights are read once, and each unit of an axis is compared with each.
"""

import torch
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches

EXACTLY = "donot_use_mm_for_euclid_dist"  # a product of matrices rounds the distance of equal filters to more than 0


@criteria.register("fpgm")
def fpgm(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:  # noqa: ARG001
    """Scores (c) per free axis: the sum of distances to all units of the axis; batches are not looked at."""
    rows = {name: gated.weights(name) for name in gated.space.free}
    units = {name: torch.cat(each, 1).detach() for name, each in rows.items() if each}
    wide = {name: each.to(torch.promote_types(each.dtype, torch.float32)) for name, each in units.items()}
    return with_the_rest(gated, {name: torch.cdist(w, w, compute_mode=EXACTLY).sum(1) for name, w in wide.items()})
