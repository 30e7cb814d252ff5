"""The price of being over budget, as a function of the expected sizes.

``hinge`` (ours): alpha * max(0, log(cost / target)): nothing to pay below the target, and the same price for the same
relative excess on every device. ``log``: alpha * log(1 + cost / dense cost), the joint loss of W-Gates
(arXiv 2007.02066) as far as it is known, with the cost normalised so that alpha means the same everywhere (ours).
"""

from typing import Literal

import torch
from torch import Tensor

from nas_prune.costs import Budget
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.penalty import Penalty, penalties


@penalties.register("budget")
class BudgetPenalty(Penalty):
    """``alpha``: the price. ``margin``: aim at this share of the target, so that rounding does not overshoot it."""

    def __init__(
        self, budget: Budget, *, alpha: float = 2.0, form: Literal["hinge", "log"] = "hinge", margin: float = 1.0
    ) -> None:
        super().__init__()
        self.cost, self.alpha, self.form = budget.cost, alpha, form
        self.margin, self.target = margin, margin * budget.limit
        self.dense = float(budget.cost({}).detach())

    def aim(self, limit: float) -> None:
        self.target = self.margin * limit

    def forward(self, gated: GatedModel) -> Tensor:
        """The penalty, (), for the sizes of the last forward pass."""
        cost = self.cost(gated.sizes())
        if self.form == "log":
            return self.alpha * torch.log1p(cost / self.dense)
        return self.alpha * torch.log(cost / self.target).clamp(min=0)
