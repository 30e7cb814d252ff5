"""One threshold for all scores: keep what scores above it, the lowest one that meets the limit.

Every axis keeps at least its minimum width, and takes only widths that its divisor allows. Ours; W-Gates' scores share
one scale across layers by construction, so one threshold (zero, if training met the budget exactly) is fair to all.
"""

from collections.abc import Mapping

import torch

from nas_prune.base.axis import Axis
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.tracing.arch import Arch, allowed_width
from nas_prune.tracing.space import SearchSpace


@selectors.register("ranked")
def ranked(question: Question) -> Decision:
    """The architecture of the lowest threshold that is within the limit, found by bisection over the scores.

    Raises BudgetError where even the smallest architecture is not.
    """
    scores, space = question.scores, question.space
    thresholds = torch.unique(torch.cat([scores[name].flatten() for name in space.free])).tolist()
    low, high = -1, len(thresholds)  # the threshold at ``low`` keeps too much, the one at ``high`` fits
    smallest = above(scores, float("inf"), space)
    if question.spent(smallest) > question.limit:
        raise question.out_of_reach(question.spent(smallest))
    while high - low > 1:
        middle = (low + high) // 2
        if question.spent(above(scores, thresholds[middle], space)) <= question.limit:
            high = middle
        else:
            low = middle
    return Decision(best_units(scores, smallest if high == len(thresholds) else above(scores, thresholds[high], space)))


def best_units(scores: Scores, sizes: Mapping[str, float]) -> Arch:
    """The architecture that keeps the units of the highest scores, as many as the sizes say."""
    return Arch({name: scores[name].topk(int(size)).indices.tolist() for name, size in sizes.items()})


def above(scores: Scores, threshold: float, space: SearchSpace) -> dict[str, float]:
    """Size of every axis at one threshold; of a choice, the candidate of the highest score stays."""
    kept = {name: float(width_above(scores, threshold, axis, space.minimum[name])) for name, axis in space.free.items()}
    return kept | {name: float(chosen) for name, chosen in space.chosen(scores).items()}


def width_above(scores: Scores, threshold: float, axis: Axis, minimum: int) -> int:
    """The width of an axis at a threshold: one that its divisor allows, and not below the minimum."""
    return max(minimum, allowed_width(axis, int((scores[axis.name] >= threshold).sum())))
