"""What selectors are asked in tests."""

from nas_prune.costs import Budget
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors import Question, Selector
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace


def ask(select: Selector, *task: object, **options: object) -> Arch:
    """The architecture that a selector decides on, by scores, cost, limit and space."""
    return select(Question(*task), **options).arch  # type: ignore[arg-type]


def asked(scores: Scores, budget: Budget, space: SearchSpace) -> Question:
    """The question under a budget."""
    return Question(scores, budget.cost, budget.limit, space)
