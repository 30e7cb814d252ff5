"""What a cost model is: expected sizes of the axes -> parameters, MACs or milliseconds, differentiable."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from nas_prune.base.registry import Registry

Sizes = Mapping[str, Tensor | float]
Columns = Mapping[str, Tensor]  # (b) per axis


class CostModel(Protocol):
    """Called with the size of every axis, integer or real; an axis left out is dense. ``unit`` names what comes out."""

    unit: str

    def __call__(self, sizes: Sizes) -> Tensor:
        """The cost, a scalar tensor."""
        ...

    def many(self, columns: Columns) -> Tensor:
        """Costs (b) of sizes (b) per axis, or () where all cost the same; here one after another, broadcasting is
        faster."""
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        each = [float(self(dict(zip(columns, row, strict=True)))) for row in rows]
        return torch.tensor(each, dtype=torch.float64)


costs: Registry[type] = Registry("cost", __package__)
