"""Uniform widths: every axis keeps the same share of its units, the best ones. What any search has to beat."""

from collections.abc import Callable, Mapping

from nas_prune.base.axis import BITS
from nas_prune.costs import CostModel
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.tracing.arch import allowed_width
from nas_prune.tracing.space import SearchSpace

STEPS = 1024  # shares that are told apart


@selectors.register("uniform")
def uniform(question: Question) -> Decision:
    """The widest architecture of one share for all widths within the limit; branches and the best candidates stay.

    Raises BudgetError where the narrowest one is not.
    """
    return Decision(best_units(question.scores, uniform_sizes(question)))


def uniform_sizes(question: Question) -> dict[str, float]:
    """Size per axis of that architecture. Raises BudgetError where the narrowest one is not within the limit."""
    chosen = {name: float(each) for name, each in question.space.chosen(question.scores).items()}
    sizes = uniform_widths(question.space, question.cost, question.limit, chosen)
    if question.spent(sizes) > question.limit:
        raise question.out_of_reach(sizes)
    return sizes


def uniform_widths(
    space: SearchSpace, cost: CostModel, limit: float, chosen: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Size per axis at the largest share whose cost is within the limit; at the least widths where none is.

    ``chosen``: sizes of the candidates of choices.
    """

    def sizes(step: int) -> dict[str, float]:
        return _at(space, step / STEPS, chosen or {})

    return sizes(largest(STEPS, lambda step: float(cost(sizes(step)).detach()) <= limit))


def largest(steps: int, fits: Callable[[int], bool]) -> int:
    """The largest of so many steps that fits, by bisection; 0, which is not asked, where none does."""
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _at(space: SearchSpace, share: float, chosen: Mapping[str, float]) -> dict[str, float]:
    """Sizes at one share; branches stay."""
    wanted = {name: 1.0 if axis.kind in BITS else share for name, axis in space.alone.items()}
    widths = {name: allowed_width(axis, wanted[name] * axis.size) for name, axis in space.alone.items()}
    return {name: float(max(space.minimum[name], width)) for name, width in widths.items()} | dict(chosen)
