"""Ridge: what a unit said is said by those that stay, as well as they can. (Ours; see ``compensation``.)

With d (n) what is missing, x without z in its place, B has the least squares of d - B z - c over images and positions,
held at zero by a share ``strength`` of the mean variance of what stays:

    B = D Z^T (Z Z^T + strength mean(diag Z Z^T) 1)^-1,    D, Z about their means

So a unit that is a linear combination of others goes without an
error, on the images that were looked at; the strength makes it hold for others. The mean is what is left at infinite
strength. A pixel is regressed on the same pixel of other channels, whatever the kernel of the layer that reads it.
Layers that read more than ``WIDEST`` entries, as one behind a flattened map, are given the mean alone.
"""

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from nas_prune.methods.compensations.compensation import IMAGES, Moments, compensations, refitted
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch

STRENGTH = 1e-2
SMALLEST = 1e-12  # of the largest eigenvalue: a direction in which what stays does not move


@compensations.register("ridge")
def ridge(
    gated: GatedModel,
    arch: Arch,
    batches: Batches,
    *,
    strength: NonNegativeFloat = STRENGTH,
    images: PositiveInt = IMAGES,
) -> dict[str, Tensor]:
    """Edits of weights, biases and means of BatchNorms, found on the first ``images`` of the batches."""

    def fit(moments: Moments) -> Tensor:
        within = moments.within
        held = within + strength * within.diagonal().mean() * torch.eye(len(within)).to(within)
        inverse: Tensor = torch.linalg.pinv(held, rtol=SMALLEST, hermitian=True)
        return moments.across @ inverse

    return refitted(gated, arch, batches, images, fit)
