"""A free logit per unit, through a sigmoid. Soft while training; an architecture keeps what is at least half open."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates


@gates.register("sigmoid")
class Sigmoid(Gate):
    """keep = sigmoid(logit / temperature). Logits start at ``init``, well open (0 would start half closed)."""

    def __init__(self, size: int, fan_in: Sequence[int], *, init: float = 3.0, temperature: float = 1.0) -> None:
        super().__init__(size, fan_in)
        self.temperature = temperature
        self.logit = nn.Parameter(torch.full((size,), init))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The logits (c)."""
        return self.logit

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c), strictly between 0 and 1."""
        return torch.sigmoid(score / self.temperature)
