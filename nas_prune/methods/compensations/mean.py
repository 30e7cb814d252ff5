"""Mean: the mean of what a unit said goes on in the bias of whoever read it. (Ours; see ``compensation``.)

Weights stay as they are, B being zero; c is what units that have gone said on average over images and
positions, and by how much the mean of those that stay has moved since others before them went.
"""

from pydantic import PositiveInt
from torch import Tensor

from nas_prune.methods.compensations.compensation import IMAGES, compensations, refitted
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch


@compensations.register("mean")
def mean(gated: GatedModel, arch: Arch, batches: Batches, *, images: PositiveInt = IMAGES) -> dict[str, Tensor]:
    """Edits of biases and of the means of BatchNorms, found on the first ``images`` of the batches."""
    return refitted(gated, arch, batches, images)
