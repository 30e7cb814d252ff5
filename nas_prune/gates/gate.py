"""What a gate is: one keep value per unit of an axis, computed from the weights that write the axis."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.registry import Registry

gates: Registry[type["Gate"]] = Registry("gate")


class Gate(nn.Module):
    """A gate of one axis.

    ``size``: units of the axis. ``fan_in``: numbers per unit in each weight that writes the axis.
    A method is a subclass that says how scores come about (``score``) and how they open and close units (``open``).
    """

    def __init__(self, size: int, fan_in: Sequence[int]) -> None:
        super().__init__()
        self.size = size
        self.fan_in = tuple(fan_in)

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Scores (c) from the weights [(c n_i), ...] that write the axis; a unit is open where it is >= 0."""
        raise NotImplementedError

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c) in [0, 1] for scores (c)."""
        raise NotImplementedError

    def forward(self, weight: Sequence[Tensor], x: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Keep values (c); ``x`` is for gates that look at what they gate."""
        return self.open(self.score(weight))

    @staticmethod
    def mix(x: Tensor, keep: Tensor) -> Tensor:
        """How a keep value acts on what it gates; both broadcast against each other."""
        return x * keep


class HardStep(torch.autograd.Function):
    """1 where the score is >= 0; backwards the triangle max(0, 1 - |z|).

    The triangle is the derivative of Bi-Real Net's piecewise polynomial (arXiv 1808.00278, eq. 7), mapped to {0, 1}.
    """

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        """Open (1) or closed (0), same shape as the scores."""
        ctx.save_for_backward(score)
        return (score >= 0).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient through the triangle."""
        (score,) = ctx.saved_tensors
        through: Tensor = gradient * (1 - score.abs()).clamp(min=0)
        return through
