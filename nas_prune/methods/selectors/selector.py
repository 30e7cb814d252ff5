"""What a selector is: a question about scored units and a limit on a cost -> the decision that meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_prune.base.errors import BudgetError, DataError
from nas_prune.base.registry import Registry
from nas_prune.costs import CostModel
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches, Scores
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace


@dataclass(frozen=True)
class Question:
    """Which units make the best network whose cost is within the limit?

    ``scores``: (c) per axis, higher = keep. ``limit``: in the unit of the cost. ``further``: scores of other criteria,
    by name. ``gated``, ``batches``: the model and labelled images on its device, for selectors that look at them; what
    a selector changes in the model, it puts back. ``seed``: of whatever is drawn. ``found``: what was found ``once``.
    """

    scores: Scores
    cost: CostModel
    limit: float
    space: SearchSpace
    further: Mapping[str, Scores] = field(default_factory=dict)
    gated: GatedModel | None = None
    batches: Batches = ()
    seed: int = 0
    found: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, what: str, find: Callable[[], Any]) -> Any:
        """What ``find`` gives, found for this question and taken again for the same one under other limits."""
        if what not in self.found:
            self.found[what] = find()
        return self.found[what]

    def within(self, limit: float, cost: CostModel | None = None) -> Question:
        """The same question under another limit."""
        return replace(self, limit=limit, cost=cost or self.cost)

    def scored(self, scores: Scores) -> Question:
        """The same question about other scores."""
        return replace(self, scores=scores)

    def generator(self) -> torch.Generator:
        """A fresh generator, so that the same question gets the same answer."""
        return torch.Generator().manual_seed(self.seed)

    def model(self, who: str) -> GatedModel:
        """The gated model, for a selector that looks at it. Raises DataError where there is none."""
        if self.gated is None:
            raise DataError(f"the selector {who} looks at the model, and the question has none; give `gated`")
        return self.gated

    def spent(self, sizes: Mapping[str, float]) -> float:
        """What these sizes cost."""
        return float(self.cost(sizes).detach())

    def out_of_reach(self, smallest: Mapping[str, float]) -> BudgetError:
        """The error for a limit below what the smallest architecture, of these sizes, costs."""
        return BudgetError(
            f"no architecture of search space {self.space.name} is within {self.limit:.4g} {self.cost.unit}: "
            f"its smallest one takes {self.spent(smallest):.4g}. Raise the budget, or lower `minimum` in the space",
            smallest=smallest,
        )


@dataclass(frozen=True)
class Decision:
    """Which units stay, and what becomes of the weights of the dense model on the way.

    ``edits``: name of a parameter or buffer -> its new values, of its dense shape. They are made before anything is cut
    out, so what is derived computes what the edited model computes with the other units closed. ``remark``: what the
    selector has to say of it, in a line. ``pictures``: for the report, images (3 h w) of bytes that show what was
    looked at, by axis.
    """

    arch: Arch
    edits: Mapping[str, Tensor] = field(default_factory=dict)
    remark: str = ""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class Selector(Protocol):
    """A part that decides; its options are keyword-only parameters."""

    def __call__(self, question: Question) -> Decision:
        """A decision whose cost is within the limit. Raises BudgetError if there is none."""
        ...


selectors: Registry[Selector] = Registry("selector", __package__)
