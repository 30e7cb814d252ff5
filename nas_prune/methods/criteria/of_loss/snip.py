"""SNIP: a weight matters as much as the loss would change if its connection were scaled, at first order.

Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (arXiv 1810.02340, equations 5 and 6): a
weight w_j is replaced by c_j w_j, c_j = 1, and with g_j = dL / dc_j = w_j dL / dw_j its score is

    s_j = |g_j| / sum over k of |g_k|

Ours: a unit scores the sum over all weights that write it; L is the mean over all images of the batches (the paper has
one); the sum over k is that over all weights that write an axis; and the model is in eval mode, so the loss is that of
the network which is derived, but for norms that have learnt nothing (see ``random_weights``).

Cost: a forward and a backward pass per batch.
"""

import torch
from torch import Tensor

from nas_prune.methods.criteria.criterion import at_least_one, criteria
from nas_prune.methods.criteria.of_loss.weights import (
    added,
    learning,
    share_of_loss,
    slopes,
    sums_of_units,
    weights_of,
)
from nas_prune.methods.criteria.random_weights import awake
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating


@criteria.register("snip")
def snip(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:
    """Scores (c) per free axis. Raises DataError without a batch, DivergedError where a gradient is not a number."""
    fixed, weights = at_least_one(batches, "SNIP"), weights_of(gated)
    sizes, gradient = [len(labels) for _, labels in fixed], None
    with evaluating(gated), awake(gated, min(sizes)), learning(weights):
        for batch in fixed:
            gradient = added(gradient, slopes(share_of_loss(gated, batch, sum(sizes)), weights))
    sensitivity = {name: (weights[name].detach() * each).abs() for name, each in (gradient or {}).items()}
    total = torch.stack([each.sum() for each in sensitivity.values()]).sum() if sensitivity else None
    if total is not None and float(total) > 0:
        sensitivity = {name: each / total for name, each in sensitivity.items()}
    return sums_of_units(gated, sensitivity)
