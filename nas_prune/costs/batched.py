"""A cost of many architectures at once: what a search over architectures spends its time on."""

import torch
from torch import Tensor

from nas_prune.costs.cost import Columns, CostModel


def batched(cost: CostModel, columns: Columns) -> Tensor:
    """Costs (b) in float64 on the CPU, without gradients, of sizes (b) per axis; an axis left out is dense."""
    with torch.no_grad():
        return cost.many(columns).double().cpu().expand(len(next(iter(columns.values()))))
