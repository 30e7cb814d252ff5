"""Combined: one score is maximised while others are held, so that no single one decides what is pruned.

COPS (Wimmer et al., arXiv 2107.12673; see ``solver/relaxed``) prunes single weights before training starts, by SNIP,
GraSP, SynFlow, magnitude: ``search.criterion`` is the score that is maximised, ``search.further`` names those that are
held. Each is shifted to be nowhere below zero and divided by its sum over all axes, so that SNIP's 1e-6 and SynFlow's
1e20 can be compared.

Ours: an item is a unit of an axis, and its cost is the marginal cost of its axis at the present widths, so a score
counts per millisecond. The program is linear; the cost is not: the weights of the scores are found at uniform widths,
then again at what they lead to. The units are those of the highest combined score over marginal cost, as many as are
within the limit, of equal ones some (as in ``ranked``), with the floor and the divisor of every axis; so a control is
met to a few units.
"""

from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from torch import Tensor

from nas_prune.base.errors import RecipeError
from nas_prune.base.settings import Share
from nas_prune.costs.batched import batched
from nas_prune.methods.scores import Scores, finite
from nas_prune.methods.selectors.ranked import ranked
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.solver.relaxed import Relaxed, solve
from nas_prune.methods.selectors.uniform import uniform_widths

LEAST = 1e-6  # of what all units cost on average: what a unit is said to cost that is free


@selectors.register("combined")
def combined(question: Question, *, keep: Share | Mapping[str, Share] = 0.8, looks: PositiveInt = 3) -> Decision:
    """``keep``: share of the most that each further score could keep alone within the limit, of all or by name; a score
    that is not named is not held. ``looks``: how often costs are made linear.

    Raises RecipeError for a score that is not there and for shares that cannot be kept together, BudgetError where even
    the smallest architecture is above the limit, DivergedError where a score is not a finite number.
    """
    shares = keep if isinstance(keep, Mapping) else dict.fromkeys(question.further, keep)
    missing = sorted(shares.keys() - question.further.keys())
    if missing:
        raise RecipeError(f"combined: nothing has given scores called {missing[0]}; add it to search.further")
    scores = torch.stack(
        [_shares(each, question) for each in (question.scores, *(question.further[n] for n in shares))]
    )
    free, chosen = question.space.free, question.space.chosen(question.scores)
    wide = uniform_widths(question.space, question.cost, question.limit, {n: float(each) for n, each in chosen.items()})
    for _ in range(looks):
        costs = marginal_costs(question, wide)
        limit = question.limit - question.spent(wide) + sum(float(costs[name]) * wide[name] for name in free)
        every = torch.cat([costs[name].expand(axis.size) for name, axis in free.items()])
        limit = max(limit, float(every.min()))
        found = solve(Relaxed(scores, every, limit, torch.tensor([*shares.values()], dtype=torch.float64)))
        if found is None:
            raise RecipeError(
                f"combined: no network within {question.limit:.4g} {question.cost.unit} keeps these shares of "
                f"{', '.join(shares)} together; lower `keep`"
            )
        parts = torch.split(found[0] @ scores / every, [axis.size for axis in free.values()])
        decision = ranked(question.scored(dict(zip(free, parts, strict=True))))
        sizes = {name: float(size) for name, size in decision.arch.sizes(free).items()}
        if sizes == wide:
            break
        wide = sizes
    return decision


def marginal_costs(question: Question, sizes: Mapping[str, float]) -> dict[str, Tensor]:
    """What one more unit of each axis costs, (), at these sizes: the slope from the next smaller to the next larger."""
    free, minimum = question.space.free, question.space.minimum
    below = {name: max(float(minimum[name]), sizes[name] - axis.divisor) for name, axis in free.items()}
    above = {name: min(float(axis.size), sizes[name] + axis.divisor) for name, axis in free.items()}
    rows = [dict(sizes) | {name: size[name]} for size in (below, above) for name in free]
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in free}
    low, high = torch.split(batched(question.cost, columns), len(free))
    steps = torch.tensor([above[name] - below[name] for name in free], dtype=torch.float64)
    slopes = (high - low) / steps.clamp(min=1)
    dense = {name: float(axis.size) for name, axis in free.items()}
    least = LEAST * question.spent(dense) / sum(dense.values())
    return dict(zip(free, slopes.clamp(min=least), strict=True))


def _shares(scores: Scores, question: Question) -> Tensor:
    """Scores (u) of the units of all axes, one after the other, nowhere below zero, as shares of their sum."""
    exact = finite({name: scores[name] for name in question.space.free})
    every = torch.cat(list(exact.values()))
    every = every - every.min().clamp(max=0)
    return every / every.sum() if float(every.sum()) > 0 else torch.full_like(every, 1 / len(every))
