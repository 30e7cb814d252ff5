"""Shapley values with few evaluations: antithetic permutations, with a surrogate as control variate.

Walks come in pairs, an order and its reverse (Mitchell et al., "Sampling Permutations for Shapley Value Estimation",
arXiv 2104.12199), which is exact for games whose interactions are of order two. A surrogate fitted on the other walks
is subtracted from the game on a pair, and its Shapley values, known exactly, are added again: the estimate of a pair
stays unbiased, and only what the surrogate misses is noise. These give the intervals; the values themselves are those
of the surrogate fitted on all walks. That a regression makes a Monte-Carlo estimate better
without bias is from Witter, Liu and Musco, "Regression-adjusted Monte Carlo Estimators for Shapley Values and
Probabilistic Values" (arXiv 2506.11849); the walks, the folds and the surrogate are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from accelerate import Accelerator
from einops import reduce
from scipy.stats import t as student
from torch import Tensor

from nas_prune.base.errors import DivergedError
from nas_prune.methods.shapley.exact import MOST, exact
from nas_prune.methods.shapley.game import Game
from nas_prune.methods.shapley.surrogate import Kernel, fitted, tuned
from nas_prune.methods.shapley.walks import Walks, coalitions, pairs, walked

FOLDS = 8
FIRST = 4  # pairs in the first round; each round after that brings half as many again as there are


@dataclass(frozen=True)
class Processes:
    """Which of ``count`` processes this is, and how a tensor is summed over all of them.

    All hold the same model and the same batches; each evaluates its share of the walks.
    """

    rank: int = 0
    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @staticmethod
    def of(accelerator: Accelerator) -> "Processes":
        """The processes of an accelerator."""

        def total(tensor: Tensor) -> Tensor:
            summed: Tensor = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
            return summed.cpu()

        return Processes(accelerator.process_index, accelerator.num_processes, total)


@dataclass(frozen=True)
class EstimatePlan:
    """When to stop, and how to walk.

    ``evaluations``: no further walks above so many coalitions (two pairs of walks at least). ``until``: stop earlier
    when the best candidate of every choice is known ("choices"), or the set of so many best players (a number).
    ``guard``: the last candidate of a choice is never removed; the values then add up to v(all) - mean v(guarded).
    ``tolerance``: end a walk within this share of its range from its end (see ``walk.walked``).
    """

    evaluations: int = 500
    until: Literal["choices"] | int | None = None
    guard: bool = False
    tolerance: float = 0.0
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class Estimate:
    """``values`` (n): Shapley values. ``samples`` (p n): an unbiased estimate per pair of walks.

    ``values`` are those of the surrogate through all coalitions, which err less than the mean of the samples, though
    not without bias; with a guard or a tolerance they are that mean. ``evaluations``: coalitions in all walks.
    """

    values: Tensor
    samples: Tensor
    evaluations: int
    settled: bool = False

    @property
    def half_width(self) -> Tensor:
        """Half the 95 % confidence interval of the mean of the samples (n)."""
        return _half_width(self.samples)

    def above(self, better: Tensor, worse: Tensor) -> bool:
        """Whether each of these players is worth more than each of those, with 95 % confidence in each comparison."""
        if len(worse) == 0:
            return True
        gaps = self.samples[:, better, None] - self.samples[:, None, worse]
        return bool((gaps.mean(0) > _half_width(gaps)).all())


def estimate(game: Game, plan: EstimatePlan, generator: torch.Generator) -> Estimate:
    """Shapley values of the game; exact ones where there are no more coalitions than evaluations.

    The same generator gives the same walks, on any number of processes.
    Raises DivergedError where a coalition's value is not a number.
    """
    if 2**game.players <= plan.evaluations and game.players <= MOST and not plan.guard:
        values = _finite(exact(game, game.players))
        return Estimate(values, values.expand(2, -1), 2**game.players, settled=True)
    walks = _walks(game, pairs(FIRST if _room(0, 0, game, plan) >= FIRST else 2, game.players, generator), plan)
    while True:
        found = estimated(game, walks, plan)
        count = len(walks.orders) // 2
        more = min(count // 2, _room(found.evaluations, count, game, plan))
        if found.settled or more < 1:
            return found
        walks = walks.joined(_walks(game, pairs(more, game.players, generator), plan))


def _room(evaluations: int, count: int, game: Game, plan: EstimatePlan) -> int:
    """How many pairs of walks may follow ``count`` of them; few players meet the same coalitions again and again."""
    return min((plan.evaluations - evaluations) // max(1, 2 * game.players - 2), plan.evaluations - count)


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise DivergedError(
            "a coalition's value is not a number; check the images, the labels and the weights that it is computed from"
        )
    return values


def _walks(game: Game, orders: Tensor, plan: EstimatePlan) -> Walks:
    """The walks of these orders; each process takes every ``count``-th pair."""
    left = coalitions(orders, game.choices if plan.guard else ())
    own = torch.arange(len(orders)) // 2 % plan.processes.count == plan.processes.rank
    values = torch.zeros(left.shape[:2], dtype=torch.float64)
    if bool(own.any()):
        values[own] = walked(game, left[own], plan.tolerance)
    return Walks(orders, left, _finite(plan.processes.total(values)))


def estimated(game: Game, walks: Walks, plan: EstimatePlan) -> Estimate:
    """The estimate from these walks, a pair or more."""
    if plan.guard or plan.tolerance > 0:  # the walks are then not those of the game that a surrogate stands for
        marginals = walks.marginals()
        values = marginals.mean(0)
    else:
        kernel = tuned(*_different(walks), game.choices)
        values = fitted(kernel, *_different(walks)).shapley()
        marginals = _adjusted(walks, kernel)
    samples = reduce(marginals, "(p pair) n -> p n", "mean", pair=2)
    found = Estimate(values, samples, walks.distinct())
    return replace(found, settled=_settled(found, game, plan))


def _adjusted(walks: Walks, kernel: Kernel) -> Tensor:
    """Marginals (m n) of what the surrogate of the other folds leaves over, plus that surrogate's Shapley values."""
    folds = min(FOLDS, len(walks.orders) // 2)
    fold = (torch.arange(len(walks.orders)) // 2) % folds
    adjusted = torch.zeros(walks.orders.shape, dtype=torch.float64)
    for number in range(folds):
        own, others = walks.some(fold == number), walks.some(fold != number)
        surrogate = fitted(kernel, *_different(others))
        adjusted[fold == number] = own.marginals(own.values - surrogate(own.coalitions)) + surrogate.shapley()
    return adjusted


def _different(walks: Walks) -> tuple[Tensor, Tensor]:
    """The coalitions (l n) on the walks, each once, and their values (l)."""
    distinct, index = torch.unique(walks.coalitions.flatten(0, 1), dim=0, return_inverse=True)
    return distinct, torch.zeros(len(distinct), dtype=torch.float64).scatter(0, index, walks.values.flatten())


def _settled(found: Estimate, game: Game, plan: EstimatePlan) -> bool:
    """Whether the ranking that was asked for is."""
    if plan.until is None:
        return False
    if plan.until != "choices":
        order = found.values.argsort(descending=True)
        return found.above(order[: plan.until], order[plan.until :])
    best = []
    for choice in (torch.tensor(choice) for choice in game.choices):
        order = choice[found.values[choice].argsort(descending=True)]
        best.append(found.above(order[:1], order[1:]))
    return bool(best) and all(best)


def _half_width(samples: Tensor) -> Tensor:
    """Half the 95 % confidence interval of the mean of independent samples (p ...)."""
    count = len(samples)
    factor = float(student.ppf(0.975, count - 1)) / count**0.5
    return samples.std(0).mul(factor)
