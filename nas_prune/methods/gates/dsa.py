"""DSA: one keep ratio per layer is learnt; which filters make it up follows from how long they are.

Ning et al., "DSA: More Efficient Budgeted Pruning via Differentiable Sparsity Allocation" (ECCV 2020, arXiv
2004.02164), the operation as in the public code. With w_c the L1 norm of filter c, not moved by it,

    alpha = sigmoid(r),   p_c = 1 / (1 + (w_c / beta1)^(-beta2)),   beta1 such that mean_c p_c = alpha
    d p_c / d alpha = C sigma'_c / sum_c sigma'_c   (implicit differentiation)

and the mask is drawn with probabilities p, gradients going straight through. Ours: beta2 grows from ``sharpness`` to
``final`` as the joint training passes, so that what is drawn becomes what is chosen; in eval mode a unit is open where
it is as probable as not; where units are removed for good, an offset per unit stands for what is gone of its length;
the budget is whatever penalty the recipe names, where the paper takes ADMM, and the rate of r (``search.gate_lr``) the
recipe's, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates

PARTS, ROUNDS = 64, 10  # of the range in which the threshold lies, again and again: to the last bit in float64
LEAST = 1e-12  # of a probability, and of what it is short of one
HAIR = 1e-13  # what each unit scores below the next longer one, where probabilities are one, or zero, to the last bit


@gates.register("dsa")
class SparsityAllocation(Gate):
    """``init``: r at the start, 5 in the code. ``sharpness``, ``final``: beta2, first and last. What no weight writes
    has units of one length."""

    averaged = ("offset",)
    offset: Tensor

    def __init__(
        self,
        size: int,
        fan_in: Sequence[int],
        *,
        init: float = 5.0,
        sharpness: float = 2.0,
        final: float = 20.0,
    ) -> None:
        super().__init__(size, fan_in)
        self.first, self.final, self.sharpness = sharpness, final, sharpness
        self.ratio = nn.Parameter(torch.tensor(init))
        self.register_buffer("offset", torch.zeros(size))

    def advance(self, share: float) -> None:
        """Take the sharpness of this moment."""
        self.sharpness = self.first * (self.final / self.first) ** share

    def probabilities(self, weight: Sequence[Tensor]) -> Tensor:
        """p (c) in float64, with mean alpha."""
        found: Tensor = Allocated.apply(torch.sigmoid(self.ratio), self._exponents(weight))
        return found

    @torch.no_grad()
    def _exponents(self, weight: Sequence[Tensor]) -> Tensor:
        """beta2 times the logarithms of the lengths (c)."""
        lengths = [each.abs().sum(1) for each in weight] if self.fan_in else [self.ratio.new_ones(self.size)]
        length = torch.stack(list(lengths)).sum(0)
        tiny = torch.finfo(length.dtype).tiny
        return self.sharpness * (length.clamp(min=tiny).log() + self.offset)

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """p - 1/2 (c) in float64; of units that are as probable, the longer one, or the earlier, a hair more."""
        order = self._exponents(weight).argsort(descending=True, stable=True)
        return self.probabilities(weight) - 0.5 - HAIR * order.argsort()

    def open(self, score: Tensor) -> Tensor:
        """0 or 1 (c), drawn while it trains; the gradient is that of p."""
        chances = (score + 0.5).to(self.ratio.dtype)
        drawn = torch.rand_like(chances) < chances if self.training else score >= 0
        return drawn.to(chances.dtype) + (chances - chances.detach())

    def go_on(self, before: Tensor, now: Tensor) -> None:
        """Let the ratio be the mean of the probabilities that those had who stay, and each length what it was."""
        with torch.no_grad():
            self.ratio.copy_(torch.logit((before + 0.5).mean(), LEAST))
            self.offset += (torch.logit(before + 0.5, LEAST) - torch.logit(now + 0.5, LEAST)) / self.sharpness


class Allocated(torch.autograd.Function):
    """Probabilities sigmoid(s - t) (c) for log-lengths s (c), with t such that their mean is alpha (); only alpha gets
    a gradient."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, s: Tensor) -> Tensor:
        """By bisection into many parts at once, in float64."""
        exact, share = s.double(), alpha.double()
        reach = torch.logit(share, LEAST)
        low, high = exact.amin() - reach, exact.amax() - reach  # all units would be too likely, and too unlikely
        parts = torch.linspace(0, 1, PARTS + 1, dtype=exact.dtype, device=exact.device)
        for _ in range(ROUNDS):
            at = torch.lerp(low, high, parts)
            last = (torch.sigmoid(exact[:, None] - at).mean(0) > share).sum().clamp(1, PARTS) - 1
            low, high = at.gather(0, torch.stack([last, last + 1])).unbind()
        p = torch.sigmoid(exact - (low + high) / 2)
        ctx.save_for_backward(p)
        ctx.kind = alpha.dtype
        return p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Implicit differentiation."""
        (p,) = ctx.saved_tensors
        slope = p * (1 - p)
        share = len(p) * slope / slope.sum().clamp(min=torch.finfo(slope.dtype).tiny)
        return (gradient * share).sum().to(ctx.kind), None
