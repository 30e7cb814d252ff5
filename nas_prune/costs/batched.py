"""A cost of many architectures at once: what a search over architectures spends its time on.

Sizes come as columns, one tensor (b) per axis. A latency predictor takes them as one matrix of shares; a cost that says
``many`` answers for all of them; any other cost is asked once per architecture.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nas_prune.costs.cost import CostModel
from nas_prune.costs.counts import Macs, Params
from nas_prune.costs.predictors.predictor import Predictor

Columns = Mapping[str, Tensor]


@runtime_checkable
class Many(Protocol):
    """A cost model that can be asked for many architectures at once."""

    def many(self, columns: Columns) -> Tensor:
        """Costs (b) of sizes (b) per axis; an axis left out is dense."""
        ...


def batched(cost: CostModel, columns: Columns) -> Tensor:
    """Costs (b) in float64 on the CPU, without gradients, of sizes (b) per axis; an axis left out is dense."""
    count = len(next(iter(columns.values())))
    with torch.no_grad():
        if isinstance(cost, Many):
            values = cost.many(columns)
        elif isinstance(cost, Predictor):
            values = cost.predict(_shares(cost, columns, count))
        elif isinstance(cost, Macs | Params):  # sums of products of sizes: they broadcast
            values = cost(columns)
        else:
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            values = torch.tensor(
                [float(cost(dict(zip(columns, row, strict=True)))) for row in rows], dtype=torch.float64
            )
    return values.double().cpu().expand(count)


def _shares(predictor: Predictor, columns: Columns, count: int) -> Tensor:
    """Inputs of a predictor (b n)."""
    kept = [
        columns[name] / full if name in columns else torch.full((count,), usual / full)
        for name, full, usual in zip(predictor.names, predictor.full, predictor.usual, strict=True)
    ]
    return torch.stack([share.to(predictor.dense_ms) for share in kept], -1)
