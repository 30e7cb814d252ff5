"""The gate of Shapley-NAS: candidates are mixed as in DARTS, but no gradient moves their weights (arXiv 2206.09811).

Once per epoch the Shapley values of the candidates are estimated, and the architecture weights alpha go a step in their
direction, with momentum. So alpha and its momentum are buffers: no optimizer and no clipping of gradients sees them
(in the public code both do), and a checkpoint holds them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_prune.methods.gates.gate import Gate, gates


@gates.register("shapley")
class Contribution(Gate):
    """keep = softmax(alpha); of a gate that has nothing to choose between, sigmoid(alpha + ``init``) per unit.

    ``spread``: of the normal numbers that the momentum starts with (the paper's code: 1e-3); alpha starts at 0.
    """

    alpha: Tensor
    momentum: Tensor

    def __init__(self, size: int, fan_in: Sequence[int], *, spread: float = 1e-3, init: float = 3.0) -> None:
        super().__init__(size, fan_in)
        self.alone = bool(fan_in) or size == 1
        self.register_buffer("alpha", torch.full((size,), init if self.alone else 0.0))
        self.register_buffer("momentum", spread * torch.randn(size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """alpha (k)."""
        return self.alpha

    def open(self, score: Tensor) -> Tensor:
        """Keep values (k) that add up to one; of a gate that stands alone, between 0 and 1 each."""
        return torch.sigmoid(score) if self.alone else torch.softmax(score, 0)
