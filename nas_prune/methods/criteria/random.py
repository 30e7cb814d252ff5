"""Random units: the control that every other criterion has to beat.

With a selector that keeps uniform widths, whatever accuracy is left is due to the widths alone; Liu et al., "Rethinking
the Value of Network Pruning" (arXiv 1810.05270), and Mittal et al. (arXiv 1801.10447) found little more in most
criteria. Scores are uniform in [0, 1). Ours: each axis draws from a stream of its own, named by the axis, so what one
axis draws depends on no other.

Cost: nothing is computed.
"""

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches


@criteria.register("random")
def random(gated: GatedModel, batches: Batches, *, seed: NonNegativeInt = 0) -> dict[str, Tensor]:  # noqa: ARG001
    """Scores (c) per free axis, the same ones for the same seed; neither weights nor batches are looked at."""
    like = next(gated.backbone.parameters())
    streams = {name: np.random.default_rng([seed, *name.encode()]) for name in gated.space.free}
    drawn = {name: stream.random(gated.axes[name].size, dtype=np.float32) for name, stream in streams.items()}
    return {name: torch.from_numpy(each).to(like.device) for name, each in drawn.items()}
