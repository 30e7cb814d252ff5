"""What the weights of a network take in memory, and how much of it does not fit into a cache.

Every call reads all weights once. While they stay in a cache from call to call that is nearly free, and from some size
on it is not: the time of a network is a kinked, convex function of its weights (ResNet-18 in ONNX Runtime on a core
with 2 MiB of cache: 3.1 % off with the kinks, 5.2 % without). Which caches there are is found by the fit. Ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_prune.costs.operators.widths import Products
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Term

MEGABYTE = 2**20
CACHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # megabytes at which weights may cease to fit


class WeightMemory(nn.Module):
    """Shares of the axes (b n) -> columns (b 1+c): megabytes of weights (float32), and those beyond c cache sizes.

    ``weights``: the terms of each tensor of weights. Each column is the sum of its own sort, named in ``groups``.
    """

    megabytes: Tensor
    caches: Tensor

    def __init__(self, axes: Axes, names: Sequence[str], weights: Sequence[Sequence[Term]]) -> None:
        super().__init__()
        self.weights = Products(axes, names, weights)
        elements = torch.tensor([float(torch.tensor([term.size for term in terms]).prod()) for terms in weights])
        self.register_buffer("megabytes", 4 * elements / MEGABYTE, persistent=False)
        caches = [size for size in CACHES if size < float(self.megabytes.sum())]
        self.register_buffer("caches", torch.tensor(caches), persistent=False)
        self.groups = ["weights", *(f"weights beyond {size:.0f} MB" for size in caches)]

    def forward(self, shares: Tensor) -> Tensor:
        """(b n) -> (b 1+c)."""
        whole = (self.weights(shares) * self.megabytes).sum(-1, keepdim=True)
        return torch.cat([whole, (whole - self.caches).clamp_min(0)], -1)
