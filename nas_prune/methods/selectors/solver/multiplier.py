"""Lagrange multiplier: a price per unit of cost turns the limit into a sum, and axes can be chosen one by one.

At a price, each axis in turn takes the width of most ``value - price * cost``, the others held (coordinate ascent),
from several starts. The price is narrowed down to where the best choice starts to fit. This is Everett's method
(Operations Research 11(3), 1963); all prices and starts climb side by side, so that a cost model answers in batches
(ours).
"""

from math import log10

import torch
from torch import Tensor

from nas_prune.methods.selectors.solver.problem import Problem

PRICES = 12  # prices that are tried side by side
ROUNDS = 3  # each narrows the range of prices to one of its PRICES - 1 parts: 10^8 -> 5.3 -> 1.16 -> 1.014
SWEEPS = 12  # ends earlier where no axis changes any more; measured: 2 to 6


def climb(problem: Problem, starts: Tensor, prices: Tensor) -> Tensor:
    """Choices (b n), each at a local optimum of value - price * cost, from starts (b n) at prices (b)."""
    choices = starts.clone()
    for _ in range(SWEEPS):
        before = choices.clone()
        for axis, count in enumerate(problem.counts.tolist()):
            costs = _costs_along(problem, choices, axis, count)
            choices[:, axis] = (problem.values[axis, :count] - prices[:, None] * costs).argmax(1)
        if torch.equal(choices, before):
            break
    return choices


def _costs_along(problem: Problem, choices: Tensor, axis: int, count: int) -> Tensor:
    """Costs (b count) of choices (b n) with every position of one axis; choices that agree elsewhere are asked once."""
    others = choices.index_fill(1, torch.tensor([axis]), 0)
    distinct, which = torch.unique(others, dim=0, return_inverse=True)
    trials = distinct.repeat_interleave(count, 0)
    trials[:, axis] = torch.arange(count).repeat(len(distinct))
    return problem.costs(trials).reshape(-1, count)[which]


def unit_price(problem: Problem) -> float:
    """Value per cost of the dense model: the scale of all prices."""
    dense = problem.dense[None]
    return float(problem.value(dense) / problem.costs(dense).clamp(min=1e-300)) or 1.0


def cheapest(problem: Problem) -> Tensor:
    """The choice (n) of least cost that is found at a price that only cost matters to."""
    starts = torch.stack([problem.smallest, problem.dense // 2, problem.dense])
    found = torch.cat(
        [starts, climb(problem, starts, torch.full((3,), 1e9 * unit_price(problem), dtype=torch.float64))]
    )
    return found[int(problem.costs(found).argmin())]


def priced(problem: Problem, starts: Tensor) -> Tensor:
    """All choices (m n) that climbing from ``starts`` (s n) ends at, at prices around the one that meets the limit."""
    scale = unit_price(problem)
    low, high = log10(scale) - 4, log10(scale) + 4
    found: list[Tensor] = []
    for _ in range(ROUNDS):
        prices = torch.logspace(low, high, PRICES, dtype=torch.float64)
        ends = climb(problem, starts.repeat(PRICES, 1), prices.repeat_interleave(len(starts)))
        found.append(ends)
        gain = problem.value(ends) - prices.repeat_interleave(len(starts)) * problem.costs(ends)
        best = ends.reshape(PRICES, len(starts), -1)[torch.arange(PRICES), gain.reshape(PRICES, -1).argmax(1)]
        fits = (problem.costs(best) <= problem.limit).tolist()
        first = max(1, fits.index(True)) if any(fits) else PRICES - 1
        low, high = log10(prices[first - 1]), log10(prices[first])
        starts = torch.unique(torch.cat([starts, best[first - 1 : first + 1]]), dim=0)
    return torch.cat(found)
