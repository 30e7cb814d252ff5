"""What a selector is: scores of units, and a limit on a cost -> the architecture that meets it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nas_prune.base.errors import BudgetError, DivergedError
from nas_prune.base.registry import Registry
from nas_prune.costs import CostModel
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

Scores = Mapping[str, Tensor]


class Selector(Protocol):
    """Called with scores (c) per axis, higher = keep, a cost model, and the limit in the unit of that cost."""

    def __call__(self, scores: Scores, cost: CostModel, limit: float, space: SearchSpace) -> Arch:
        """An architecture of the space whose cost is within the limit. Raises BudgetError if there is none."""
        ...


selectors: Registry[Selector] = Registry("selector")


def finite(scores: Scores) -> dict[str, Tensor]:
    """The scores in float64 on the CPU. Raises DivergedError where one is not a finite number."""
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise DivergedError(f"scores of axis {name} are not finite numbers; lower the learning rate of the gates")
    return {name: score.detach().double().cpu() for name, score in scores.items()}


def out_of_reach(smallest: float, cost: CostModel, limit: float, space: SearchSpace) -> BudgetError:
    """The error for a limit below what the smallest architecture costs."""
    return BudgetError(
        f"no architecture of search space {space.name} is within {limit:.4g} {cost.unit}: "
        f"its smallest one takes {smallest:.4g}. Raise the budget, or lower `minimum` in the space"
    )
