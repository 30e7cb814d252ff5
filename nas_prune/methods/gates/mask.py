"""A mask: 0 or 1 per unit, set from outside. It is the gate of all methods that move gates by score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_prune.methods.gates.gate import Gate, gates


@gates.register("mask")
class Mask(Gate):
    """Keeps what ``keep`` says; everything at first. Nothing here is learned."""

    keep: Tensor

    def __init__(self, size: int, fan_in: Sequence[int]) -> None:
        super().__init__(size, fan_in)
        self.register_buffer("keep", torch.ones(size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """+1 for a kept unit, -1 for a closed one."""
        return 2 * self.keep - 1

    def open(self, score: Tensor) -> Tensor:
        """The mask (c)."""
        return (score > 0).to(score.dtype)
