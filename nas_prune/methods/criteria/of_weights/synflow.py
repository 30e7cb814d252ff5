"""SynFlow: a unit matters as much as flows through it when all weights are positive and all inputs are one.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (arXiv 2006.05467,
equation 3): with R the sum of what the network says of ones, its parameters replaced by their magnitudes, a weight
scores |w| dR / d|w|, and a unit of a network that is linear in each of its layers the sum over what it reads, which is
the sum over what reads it (theorem 1). The paper prunes in a hundred rounds, scored anew: here ``search.rounds``.

Ours: a unit's score is dR / dz, z = 1 its gate, which is the sum over the weights that read it; so branches, heads,
candidates and stripes are scored as well. It is computed in float64, of a copy, in which statistics of batches are 0
and 1 (so that BatchNorm is linear), and no norm has scales of 0 (see ``random_weights``). Where a network normalises by
what it sees, or is not linear for positive values (attention, sigmoids), the flow is that near this point, and is not
conserved.

Cost: a forward and a backward pass of one image, in float64.
"""

import torch
from torch import Tensor

from nas_prune.base.errors import DataError, DivergedError
from nas_prune.methods.criteria.criterion import criteria, float64_copy
from nas_prune.methods.criteria.random_weights import silent_scales
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches


@criteria.register("synflow")
def synflow(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:
    """Scores (c) per free axis; of the batches, the shape of the first image is looked at.

    Raises DataError without a batch, DivergedError where what flows is not a number.
    """
    images = next((images for images, _ in batches), None)
    if images is None:
        raise DataError("SynFlow needs a batch, since it says how large an image is; there was none")
    opened = _positive(gated).opened(requires_grad=True)
    keep = opened.keep()
    with torch.enable_grad():
        flow = opened(torch.ones_like(images[:1], dtype=torch.float64)).sum()
        found = torch.autograd.grad(flow, list(keep.values()), allow_unused=True, materialize_grads=True)
    scores = dict(zip(keep, found, strict=True))
    lost = next((name for name, each in scores.items() if not bool(each.isfinite().all())), None)
    if lost is not None:
        raise DivergedError(f"what SynFlow sends through axis {lost} is not a finite number; check the weights")
    return scores


@torch.no_grad()
def _positive(gated: GatedModel) -> GatedModel:
    """A copy in float64, its parameters positive, its statistics of batches those that change nothing."""
    copied = float64_copy(gated)
    for parameter in copied.backbone.parameters():
        parameter.abs_()
    for scale in silent_scales(copied):
        scale.fill_(1)
    for name, buffer in copied.backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()
        if name.endswith("running_var"):
            buffer.fill_(1)
    return copied
