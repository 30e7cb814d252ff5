"""One threshold for all scores: keep what scores above it, the lowest one that meets the limit.

Every axis keeps at least its minimum width, and takes only widths that its divisor allows. Ours; W-Gates' scores share
one scale across layers by construction, so one threshold (zero, if training met the budget exactly) is fair to all.

Units that score alike have an order, too (ours): first comes that of whose axis the smaller share stays without it, of
one axis the one of the lower index. So what is left of the limit is less than the next step of one axis takes, and
equal scores are uniform widths. Only below zero, where gates have closed them, units that score alike stay or go
together: what is dead is not brought back, one arbitrary unit after the other, to use up a limit. Where no two units
score alike, it is the threshold alone that decides.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas_prune.base.axis import Axis
from nas_prune.methods.scores import Scores, finite
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.tracing.arch import Arch, allowed_width
from nas_prune.tracing.space import SearchSpace


@selectors.register("ranked")
def ranked(question: Question) -> Decision:
    """The architecture of the most units, best first, that is within the limit, found by bisection over their number.

    Raises BudgetError where even the smallest architecture is not, DivergedError where a score is not a finite number.
    """
    scores, space = finite({name: question.scores[name] for name in question.space.free}), question.space
    (order, values), chosen = best_first(scores, space.free), space.chosen(scores)
    alike = (values[1:] == values[:-1]) & (values[1:] < 0)
    counts = [len(order), *(1 + (~alike).nonzero().flatten().flip(0)).tolist(), 0]  # of units that may stay

    def sizes(at: int) -> dict[str, float]:
        return widths_of(order[: counts[at]], space.free, space.minimum) | {n: float(one) for n, one in chosen.items()}

    low, high = -1, len(counts) - 1  # the first count that fits is above the one and not above the other
    if question.spent(sizes(high)) > question.limit:
        raise question.out_of_reach(sizes(high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if question.spent(sizes(middle)) <= question.limit else (middle, high)
    return Decision(best_units(scores, sizes(high)))


def best_units(scores: Scores, sizes: Mapping[str, float]) -> Arch:
    """The architecture that keeps the units of the highest scores, as many as the sizes say; of equals the first."""
    return Arch({name: _descending(scores[name])[: int(size)].tolist() for name, size in sizes.items()})


def best_first(scores: Scores, axes: Mapping[str, Axis]) -> tuple[Tensor, Tensor]:
    """For each unit of the axes (u), best first, the number of its axis, and its score."""
    shares = torch.cat([_descending(scores[name]).argsort() / axis.size for name, axis in axes.items()])
    values, order = torch.cat([scores[name] for name in axes]), shares.argsort(stable=True)
    order = order[_descending(values[order])]
    numbers = torch.arange(len(axes)).repeat_interleave(torch.tensor([axis.size for axis in axes.values()]))
    return numbers[order], values[order]


def widths_of(kept: Tensor, axes: Mapping[str, Axis], minimum: Mapping[str, int]) -> dict[str, float]:
    """The allowed width of every axis, not below its minimum, if units of these axes (u), by number, are kept."""
    counts = kept.bincount(minlength=len(axes)).tolist()
    pairs = zip(axes.items(), counts, strict=True)
    return {name: float(max(minimum[name], allowed_width(axis, count))) for (name, axis), count in pairs}


def above(scores: Scores, threshold: float, space: SearchSpace) -> dict[str, float]:
    """Size of every axis at one threshold; of a choice, the candidate of the highest score stays."""
    counts = {name: int((scores[name] >= threshold).sum()) for name in space.free}
    widths = {name: max(space.minimum[name], allowed_width(axis, counts[name])) for name, axis in space.free.items()}
    return {name: float(width) for name, width in (widths | space.chosen(scores)).items()}


def _descending(scores: Tensor) -> Tensor:
    """The places (c) of the scores, the highest first."""
    return scores.argsort(descending=True, stable=True)
