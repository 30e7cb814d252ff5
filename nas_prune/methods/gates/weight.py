"""W-Gates: whether a filter stays is a learnable function of the filter's own weights.

Li et al., "Weight-dependent Gates for Differentiable Neural Network Pruning" (arXiv 2007.02066). The paper's: one
fully connected layer per gated layer, shared by its filters, a binary step, a surrogate gradient. Ours, where the
paper is silent: weights are standardised per layer and the product divided by sqrt(n), so that scores of all layers
live in the surrogate's window; theta ~ N(0, 0.1^2) and b = 0.5, so that all gates start open; an axis that several
weights write (residual stage, depthwise convolution) has one gate that sees the features of all of them; what no weight
writes (a branch, the candidates of a choice) has a logit per unit, b alone. Where units are removed for good, scores of
those that stay go on from where they were: an offset per unit stands for what is no longer seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, HardStep, gates


@gates.register("weight")
class WeightGate(Gate):
    """z_c = theta . standardised(W_c) / sqrt(n) + b, keep = 1[z >= 0].

    ``detach_weights``: gates do not move the weights (the paper lets them).
    ``leak``: gradient that still reaches scores outside the surrogate's window, so that no gate dies (ours).
    """

    offset: Tensor

    def __init__(
        self, size: int, fan_in: Sequence[int], *, init: float = 0.5, detach_weights: bool = False, leak: float = 0.05
    ) -> None:
        super().__init__(size, fan_in)
        self.detach_weights = detach_weights
        self.leak = leak
        self.theta = nn.ParameterList(nn.Parameter(0.1 * torch.randn(n)) for n in fan_in)
        self.bias = nn.Parameter(torch.tensor(init) if fan_in else torch.full((size,), init))
        self.register_buffer("offset", torch.zeros(size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Scores (c) from weights [(c n_i), ...]."""
        total = torch.zeros((), device=self.bias.device)
        for w, theta in zip(weight, self.theta, strict=True):
            w = w.detach() if self.detach_weights else w
            mean, deviation = _statistics(w.detach())
            total = total + (w @ theta - mean * theta.sum()) / (deviation + 1e-6)
        return total / sqrt(max(1, sum(self.fan_in))) + self.bias + self.offset

    def narrowed(self, units: Tensor, columns: Sequence[Tensor | None]) -> Gate:
        """This gate for the units (c') that stay, with a theta for the numbers (n_i) that do."""
        small = super().narrowed(units, columns)
        pairs = zip(self.theta, columns, strict=True)
        left = [theta.detach()[each] for theta, each in pairs if each is not None]
        small.theta = nn.ParameterList(nn.Parameter(each) for each in left)
        return small

    def go_on(self, before: Tensor, now: Tensor) -> None:
        """Let the offset be what is missing."""
        self.offset += before - now

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c), each 0 or 1."""
        keep: Tensor = HardStep.apply(score)
        return keep + self.leak * (score - score.detach())


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all entries; two plain sums, which on a CPU take a tenth of torch.std_mean."""
    mean = weight.mean()
    square = torch.linalg.vector_norm(weight).square() / weight.numel()
    return mean, (square - mean.square()).clamp(min=0).sqrt()
