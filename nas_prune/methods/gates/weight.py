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
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, HardStep, gates


@gates.register("weight")
class WeightGate(Gate):
    """z_c = theta . standardised(W_c) / sqrt(n) + b, keep = 1[z >= 0].

    ``detach_weights``: gates do not move the weights (the paper lets them).
    ``leak``: gradient that still reaches scores outside the surrogate's window, so that no gate dies (ours).
    """

    averaged = ("offset",)
    offset: Tensor

    def __init__(
        self, size: int, fan_in: Sequence[int], *, init: float = 0.5, detach_weights: bool = False, leak: float = 0.05
    ) -> None:
        super().__init__(size, fan_in)
        self.detach_weights = detach_weights
        self.leak = leak
        self.theta = nn.ParameterDict((str(i), nn.Parameter(0.1 * torch.randn(n))) for i, n in enumerate(fan_in))
        self.bias = nn.Parameter(torch.tensor(init) if fan_in else torch.full((size,), init))
        self.register_buffer("offset", torch.zeros(size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Scores (c) from weights [(c n_i), ...]."""
        if not self.fan_in:
            return self.bias + self.offset
        read = [w.detach() for w in weight] if self.detach_weights else weight
        total: Tensor = StandardisedProducts.apply(*read, *self.theta.values())
        return total / sqrt(sum(self.fan_in)) + self.bias + self.offset

    def narrowed(self, units: Tensor, columns: Sequence[Tensor | None]) -> Gate:
        """This gate for the units (c') that stay, with a theta, called as it was, for the numbers (n_i) that do."""
        small = super().narrowed(units, columns)
        pairs = zip(self.theta.items(), columns, strict=True)
        left = [(name, theta.detach()[each]) for (name, theta), each in pairs if each is not None]
        small.theta = nn.ParameterDict((name, nn.Parameter(each)) for name, each in left)
        return small

    def go_on(self, before: Tensor, now: Tensor) -> None:
        """Let the offset be what is missing."""
        self.offset += before - now

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c), each 0 or 1."""
        keep: Tensor = HardStep.apply(score, self.leak)
        return keep


class StandardisedProducts(torch.autograd.Function):
    """The sum of standardised(weight (c n)) @ theta (n) over the weights -> (c), mean and deviation being constants.

    One node of the graph, since there is one per gate in every step.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """``tensors``: the weights, then their thetas."""
        weights, thetas = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        means, scales = zip(*map(_statistics, weights), strict=True)
        ctx.save_for_backward(*weights, *thetas, *means, *scales)
        total = thetas[0].new_zeros(len(weights[0]))
        for weight, theta, mean, scale in zip(weights, thetas, means, scales, strict=True):
            total.addcmul_(torch.addmv(mean * theta.sum(), weight, theta, beta=-1), scale)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the weights and of the thetas."""
        count = len(ctx.saved_tensors) // 4
        weights, thetas, means, scales = (ctx.saved_tensors[at : at + count] for at in range(0, 4 * count, count))
        scaled = [gradient * scale for scale in scales]
        of_thetas = [g @ w - mean * g.sum() for g, w, mean in zip(scaled, weights, means, strict=True)]
        moving = zip(scaled, thetas, ctx.needs_input_grad, strict=False)
        return *(torch.outer(g, theta) if needed else None for g, theta, needed in moving), *of_thetas


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all entries, and one by their deviation; two plain sums, on a CPU a tenth of torch.std_mean."""
    mean = weight.mean()
    square = torch.linalg.vector_norm(weight).square() / weight.numel()
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp(min=1e-12).rsqrt()
