"""The cost of a network of which some sizes are settled, as a function of the others."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas_prune.costs.cost import Columns, CostModel, Sizes


class Left:
    """``cost`` of all sizes; those that are left out are the ``sizes`` here, where they are named, or else dense."""

    def __init__(self, cost: CostModel, sizes: Mapping[str, float]) -> None:
        self.cost, self.sizes, self.unit = cost, sizes, cost.unit

    def __call__(self, sizes: Sizes) -> Tensor:
        """The cost, a scalar."""
        return self.cost({**self.sizes, **sizes})

    def many(self, columns: Columns) -> Tensor:
        """Costs (b) of sizes (b) per axis."""
        like = next(iter(columns.values()))
        settled = {name: torch.full_like(like, size) for name, size in self.sizes.items()}
        return self.cost.many({**settled, **columns})
