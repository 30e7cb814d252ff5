"""W-Gates: whether a filter stays is a learnable function of the filter's own weights.

Li et al., "Weight-dependent Gates for Differentiable Neural Network Pruning" (arXiv 2007.02066). The paper's: one
fully connected layer per gated layer, shared by its filters, a binary step, a surrogate gradient. Ours, where the
paper is silent: weights are standardised per layer and the product divided by sqrt(n), so that scores of all layers
live in the surrogate's window; theta ~ N(0, 0.1^2) and b = 0.5, so that all gates start open; an axis that several
weights write (residual stage, depthwise convolution) has one gate that sees the features of all of them; what no weight
writes (a branch, the candidates of a choice) has a logit per unit, b alone.
"""

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

    def __init__(
        self, size: int, fan_in: Sequence[int], *, init: float = 0.5, detach_weights: bool = False, leak: float = 0.05
    ) -> None:
        super().__init__(size, fan_in)
        self.detach_weights = detach_weights
        self.leak = leak
        self.theta = nn.ParameterList(nn.Parameter(0.1 * torch.randn(n)) for n in fan_in)
        self.bias = nn.Parameter(torch.tensor(init) if fan_in else torch.full((size,), init))

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Scores (c) from weights [(c n_i), ...]."""
        total = torch.zeros((), device=self.bias.device)
        for w, theta in zip(weight, self.theta, strict=True):
            w = w.detach() if self.detach_weights else w
            projected: Tensor = StandardisedProduct.apply(w, theta)
            total = total + projected
        return total / sqrt(max(1, sum(self.fan_in))) + self.bias

    def open(self, score: Tensor) -> Tensor:
        """Keep values (c), each 0 or 1."""
        keep: Tensor = HardStep.apply(score)
        return keep + self.leak * (score - score.detach())


class StandardisedProduct(torch.autograd.Function):
    """standardised(weight (c n)) @ theta (n) -> (c), mean and deviation of the weight being constants.

    One node of the graph, since there is one per weight in every step.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, theta: Tensor) -> Tensor:
        """The products (c)."""
        mean, deviation = _statistics(weight)
        scale = 1 / (deviation + 1e-6)
        ctx.save_for_backward(weight, theta, mean, scale)
        return (weight @ theta - mean * theta.sum()) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the weight and of theta."""
        weight, theta, mean, scale = ctx.saved_tensors
        scaled = gradient * scale
        of_weight = torch.outer(scaled, theta) if ctx.needs_input_grad[0] else None
        return of_weight, scaled @ weight - mean * scaled.sum() if ctx.needs_input_grad[1] else None


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all entries; two plain sums, which on a CPU take a tenth of torch.std_mean."""
    mean = weight.mean()
    square = torch.linalg.vector_norm(weight).square() / weight.numel()
    return mean, (square - mean.square()).clamp(min=0).sqrt()
