"""Softmax over the candidates of a choice, as in DARTS (Liu et al., arXiv 1806.09055, equation 2).

The candidate of the largest logit is what the choice becomes. Ours: on an axis of widths or a single branch, where a
softmax would have nothing to choose between, each unit has a sigmoid of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates


@gates.register("softmax")
class Softmax(Gate):
    """keep = softmax(logits / temperature). Logits start at ``spread`` times standard normal numbers (DARTS: 1e-3)."""

    def __init__(
        self, size: int, fan_in: Sequence[int], *, temperature: float = 1.0, spread: float = 1e-3, init: float = 3.0
    ) -> None:
        super().__init__(size, fan_in)
        self.temperature = temperature
        self.alone = bool(fan_in) or size == 1
        self.logit = nn.Parameter(spread * torch.randn(size) + (init if self.alone else 0.0))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The logits (k)."""
        return self.logit

    def open(self, score: Tensor) -> Tensor:
        """Keep values (k) that add up to one; of a gate that stands alone, between 0 and 1 each."""
        return torch.sigmoid(score / self.temperature) if self.alone else torch.softmax(score / self.temperature, 0)
