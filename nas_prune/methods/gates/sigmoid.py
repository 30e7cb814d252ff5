"""A free logit per unit, through a sigmoid that becomes a step while it learns.

At one temperature for ever a gate stays half open where that pays, and closing it for good is a jump. As the
temperature falls, half open is what it cannot stay (ours).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates


@gates.register("sigmoid")
class Sigmoid(Gate):
    """keep = sigmoid(logit / temperature). Logits start at ``init``, well open (0 would start half closed).

    The temperature falls from ``temperature`` to ``final``, by the same factor in every step of the joint training.
    """

    def __init__(
        self,
        size: int,
        fan_in: Sequence[int],
        *,
        init: float = 3.0,
        temperature: float = 1.0,
        final: float = 0.1,
    ) -> None:
        super().__init__(size, fan_in)
        self.first, self.final, self.temperature = temperature, final, temperature
        self.logit = nn.Parameter(torch.full((size,), init))

    def advance(self, share: float) -> None:
        """Take the temperature of this moment."""
        self.temperature = self.first * (self.final / self.first) ** share

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The logits (c)."""
        return self.logit

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c), strictly between 0 and 1."""
        return torch.sigmoid(score / self.temperature)
