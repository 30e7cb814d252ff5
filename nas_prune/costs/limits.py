"""Several limits at once, as one cost: the largest of cost / limit over the members (ours).

An architecture meets all limits exactly where this cost is at most 1, so every selector and every penalty that knows
one limit knows them all: ``Budget("1", Limits([Budget("4ms", latency), Budget("30M", params)]))``.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from nas_prune.base.errors import RecipeError
from nas_prune.costs.batched import batched
from nas_prune.costs.budget import Budget
from nas_prune.costs.cost import Columns, Sizes


class Limits:
    """How many times the tightest limit the architecture costs; 1 is the most that is within all of them."""

    unit = "x of the tightest limit"

    def __init__(self, budgets: Sequence[Budget]) -> None:
        if not budgets:
            raise RecipeError("joint limits need at least one budget; pass Limits([Budget(...), ...])")
        self.members = [(budget.cost, budget.limit) for budget in budgets]

    def __call__(self, sizes: Sizes) -> Tensor:
        """The largest ratio, a scalar; the gradient is that of the tightest member."""
        return reduce(torch.maximum, [cost(sizes) / limit for cost, limit in self.members])

    def many(self, columns: Columns) -> Tensor:
        """The largest ratio (b) for sizes (b) per axis."""
        return reduce(torch.maximum, [batched(cost, columns) / limit for cost, limit in self.members])

    def violated(self, sizes: Sizes) -> list[str]:
        """One sentence for each limit that is exceeded, in the order of the budgets; none where all are met."""
        figures = [(float(cost(sizes).detach()), limit, cost.unit) for cost, limit in self.members]
        return [
            f"{value:.4g} {unit} is {value / limit:.3g}x the limit of {limit:.4g} {unit}"
            for value, limit, unit in figures
            if value > limit
        ]


def joint(budget: Budget, limits: Sequence[Budget]) -> Budget:
    """A budget and further limits as one; the budget itself where there are none."""
    return Budget("1", Limits([budget, *limits])) if limits else budget
