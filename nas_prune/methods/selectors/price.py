"""One price for all: what gates have learnt is cut, or extended, in the order in which they would do it themselves.

A gate that was learnt under a price on cost is drawn to neither side where its score is zero: there its unit is worth
exactly what it costs. Further up it is worth more, the further the more (ours):

    worth of a unit = what it costs * f(score / t),   f(z) = softplus(z) / log 2

with t the mean magnitude of the scores of its kind of axis, as a branch's logit is of another size than the score of a
channel, and closes far more. If cost had l times the price of the training, a unit would stay where f >= l, whatever it
costs. Of the candidates of a choice, that one would stay which has most of C f - l c, with c what it costs where it
stands and C what the dearest of them does: of two that score alike, the cheaper one. The architecture is that of the
lowest price at which it is within the limit. At l = 1 it is what the gates themselves have decided, and it is taken as
it is where it uses the limit to 5 %: a unit that has never played adds noise until it is fine-tuned.

A solver that maximises the sum of such worths (``optimal``) is misled by them: costs are products of widths, so it
gives up some layers altogether and opens in others what the gates have closed.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_prune.costs import CostModel
from nas_prune.costs.batched import batched
from nas_prune.methods.scores import Scores, finite
from nas_prune.methods.selectors.ranked import above, best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.solver.problem import widths
from nas_prune.tracing.space import SearchSpace

CLOSE = 0.95  # share of the limit that the gates' own decision must use to be taken as it is
LEAST = 1e-6  # of what everything costs
LOWEST, HIGHEST = 1e-9, 1e9  # prices, times that of the training: everything stays, nothing that can go
HALVINGS = 60  # of the range of prices, on a logarithmic scale: to a ratio of 1 + 4e-17

FloatSizes = dict[str, float]


@selectors.register("price")
def price(question: Question) -> Decision:
    """The architecture of the lowest price that is within the limit, or what the gates have decided if it fits closely.

    For scores of gates, open where they are >= 0. Raises BudgetError where even the highest price leaves too much, and
    DivergedError where a score is not a finite number.
    """
    space, limit = question.space, question.limit
    exact = finite({name: question.scores[name] for name in space.free})
    worth = _worth(exact, space)
    at = _at(worth, question)
    own, smallest = at(1.0), at(HIGHEST)
    if CLOSE * limit <= question.spent(own) <= limit:
        return Decision(best_units(exact, own))
    if question.spent(smallest) > limit:
        raise question.out_of_reach(smallest)
    low, high = LOWEST, HIGHEST
    for _ in range(HALVINGS):
        middle = sqrt(low * high)
        low, high = (low, middle) if question.spent(at(middle)) <= limit else (middle, high)
    return Decision(best_units(exact, _filled(at(high), worth, question)))


def _worth(scores: Scores, space: SearchSpace) -> dict[str, Tensor]:
    """What each unit is worth, as a multiple of what it costs."""
    kinds: dict[str, list[Tensor]] = {}
    for name, axis in space.free.items():
        kinds.setdefault(axis.kind, []).append(scores[name])
    scale = {kind: float(torch.cat(found).abs().mean()) or 1.0 for kind, found in kinds.items()}
    return {name: F.softplus(scores[name] / scale[axis.kind]) / log(2) for name, axis in space.free.items()}


def _at(worth: Scores, question: Question) -> Callable[[float], FloatSizes]:
    """What is left of every axis, by price."""
    space = question.space
    own = above(worth, 1.0, space)
    costs = [_costs_of(names, question.cost, own) for names in space.choices.values()]
    least = LEAST * question.spent(own)  # where no candidate costs anything, the best one stays

    def at(price: float) -> FloatSizes:
        sizes = above(worth, price, space)
        for names, each in zip(space.choices.values(), costs, strict=True):
            gain = each.max().clamp(min=least) * torch.cat([worth[name] for name in names]) - price * each
            sizes |= {name: float(index == int(gain.argmax())) for index, name in enumerate(names)}
        return sizes

    return at


def _costs_of(names: Sequence[str], cost: CostModel, own: Mapping[str, float]) -> Tensor:
    """What each candidate (k) of a choice costs beyond none of them, everything else as the gates have decided."""
    alone = torch.cat([torch.zeros(1, len(names)), torch.eye(len(names))]).double()
    others = {name: torch.full((len(alone),), size, dtype=torch.float64) for name, size in own.items()}
    costs = batched(cost, others | dict(zip(names, alone.T, strict=True)))
    return costs[1:] - costs[0]


def _filled(sizes: FloatSizes, worth: Scores, question: Question) -> FloatSizes:
    """Sizes after the best unit that still fits was added, with as many as its axis needs, until they are close; of
    equal ones that of whose axis the smallest share stays.
    """
    space = question.space
    best = {name: worth[name].sort(descending=True).values for name in space.alone}
    allowed = {name: widths(axis, space.minimum[name]) for name, axis in space.alone.items()}
    while question.spent(sizes) < CLOSE * question.limit:
        wider = {name: [width for width in each if width > sizes[name]] for name, each in allowed.items()}
        order = sorted(
            (name for name in wider if wider[name]),
            key=lambda name: (-float(best[name][int(sizes[name])]), sizes[name] / len(best[name])),
        )
        trials = (sizes | {name: float(wider[name][0])} for name in order)
        fitting = next((trial for trial in trials if question.spent(trial) <= question.limit), None)
        if fitting is None:
            break
        sizes = fitting
    return sizes
