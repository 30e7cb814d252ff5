"""How Shapley-NAS turns Shapley values into architecture weights (arXiv 2206.09811): no gradient, but momentum.

    s = (phi - mean) / std within each group,   m <- mu m + (1 - mu) s,   alpha <- alpha + xi m

A group without spread moves nothing (ours: the public code divides by zero there).
"""

import torch
from torch import Tensor


def standardised(values: Tensor) -> Tensor:
    """Z-scores (n) of the values (n) of one group; zeros where all are equal."""
    centred = values - values.mean()
    spread = values.std(correction=0)
    equal = spread <= 10 * torch.finfo(values.dtype).eps * values.abs().max()  # rounding is no spread
    return centred.new_zeros(centred.shape) if bool(equal) else centred / spread


def ascended(
    alpha: Tensor, momentum: Tensor, scores: Tensor, *, mu: float = 0.8, xi: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The next architecture weights and the next momentum, all (n)."""
    momentum = mu * momentum + (1 - mu) * scores
    return alpha + xi * momentum, momentum
