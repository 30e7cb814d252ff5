"""Hard concrete gate: a stretched, clipped concrete variable, exactly 0 or 1 with positive probability.

Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization" (arXiv 1712.01312), eq. 10-13.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # the paper's temperature and stretch limits, section 3
SHIFT = BETA * log(-GAMMA / ZETA)


@gates.register("hard_concrete")
class HardConcrete(Gate):
    """Sampled while training, the deterministic estimate of eq. 13 in eval mode.

    ``init``: log alpha at the start, well open. ``pace``: how many times as fast as the learning rate it moves (ours):
    it has farther to go than the scores of other gates, which it decides together with.
    """

    def __init__(self, size: int, fan_in: Sequence[int], *, init: float = 3.0, pace: float = 1.0) -> None:
        super().__init__(size, fan_in)
        self.pace = pace
        self.logit = nn.Parameter(torch.full((size,), init / pace))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """Log-odds (c) of being non-zero, eq. 12."""
        return self.pace * self.logit - SHIFT

    def charged(self, keep: Tensor) -> Tensor:
        """P(z != 0), eq. 12, of units that were sampled; of a fixed architecture (no gradient), what it keeps."""
        return torch.sigmoid(self.score([])) if keep.requires_grad else keep

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c) in [0, 1]."""
        log_alpha = score + SHIFT
        s = torch.sigmoid(log_alpha)
        if self.training:
            u = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
