"""Scores and a limit as a discrete problem: one width per axis, most value, cost within the limit.

The value of a width is the sum of the best scores that it keeps (HALP, arXiv 2210.06659). Its cost is asked of the cost
model for all axes together, so a saving in the next layer's input is priced too (HALP's is not).

Values must not be negative, or keeping more would be worth less. Scores that are nowhere negative (magnitude, Taylor)
are already values and stay as they are. Where scores have both signs (gates: open where the score is >= 0), a unit is
worth t * softplus(score / t) with t the mean magnitude of all scores (ours). For a gate whose score is the log-odds of
being open and t = 1 this is -log P(closed), the surprise of closing it. So a clearly open unit is worth its score, a
clearly closed one nothing, the order of units is kept, and no outlier moves the others, as subtracting the minimum
would let it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.axis import Axis
from nas_prune.base.errors import BudgetError
from nas_prune.costs import CostModel
from nas_prune.costs.batched import batched
from nas_prune.costs.limits import Limits
from nas_prune.methods.scores import Scores, finite
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Question
from nas_prune.tracing.arch import Arch

CHUNK = 8192  # architectures per question to the cost model: a few megabytes


@dataclass(frozen=True)
class Problem:
    """A choice (n) holds one position per decision: the width of an axis, or which candidate takes a place.

    Positions run from the least width to the full one, from the cheapest candidate to the dearest. ``sizes_at``: per
    decision, what its positions mean, axis -> sizes (w); ``values`` (n w): what they are worth, the last one repeated;
    ``counts`` (n): positions there are.
    """

    sizes_at: tuple[dict[str, Tensor], ...]
    values: Tensor
    counts: Tensor
    cost: CostModel
    limit: float

    @property
    def smallest(self) -> Tensor:
        """The choice (n) of every least width."""
        return torch.zeros_like(self.counts)

    @property
    def dense(self) -> Tensor:
        """The choice (n) of every full width."""
        return self.counts - 1

    def value(self, choices: Tensor) -> Tensor:
        """Values (b) of choices (b n)."""
        return self.values.gather(1, choices.T).sum(0)

    def costs(self, choices: Tensor) -> Tensor:
        """Costs (b) of choices (b n)."""
        return torch.cat([batched(self.cost, self._columns(part)) for part in torch.split(choices, CHUNK)])

    def sizes(self, choice: Tensor) -> dict[str, float]:
        """Size per axis of a choice (n)."""
        return {name: float(column) for name, column in self._columns(choice[None]).items()}

    def choice(self, sizes: dict[str, int]) -> Tensor:
        """The choice (n) of allowed widths at or below these, and of the candidates that are kept."""
        positions = []
        for known in self.sizes_at:
            wanted = torch.tensor([float(sizes[name]) for name in known], dtype=torch.float64)
            fits = (torch.stack(list(known.values())) <= wanted[:, None]).all(0).nonzero()
            positions.append(int(fits.max()) if len(fits) else 0)
        return torch.tensor(positions)

    def _columns(self, choices: Tensor) -> dict[str, Tensor]:
        """Axis -> sizes (b) of choices (b n)."""
        each = zip(self.sizes_at, choices.T, strict=True)
        return {name: sizes[position] for known, position in each for name, sizes in known.items()}

    def arch(self, choice: Tensor, scores: Scores) -> Arch:
        """The architecture of a choice (n): the units of the best scores."""
        return best_units(scores, self.sizes(choice))


def pose(question: Question) -> Problem:
    """The problem that a question poses. Raises DivergedError where a score is not a number."""
    space, cost = question.space, question.cost
    worth = values({name: question.scores[name] for name in space.free})
    decisions = [_widths(axis, space.minimum[name], worth[name]) for name, axis in space.alone.items()]
    decisions += [_candidates(names, cost, worth) for names in space.choices.values()]
    counts = torch.tensor([len(each) for _, each in decisions])
    longest = int(counts.max())
    table = torch.stack([torch.cat([each, each[-1:].expand(longest - len(each))]) for _, each in decisions])
    return Problem(tuple(sizes for sizes, _ in decisions), table, counts, cost, question.limit)


def _widths(axis: Axis, minimum: int, worth: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Widths of an axis, and the values of their best units."""
    allowed = widths(axis, minimum)
    sums = F.pad(worth.sort(descending=True).values.cumsum(0), (1, 0))
    return {axis.name: torch.tensor(allowed, dtype=torch.float64)}, sums[allowed]


def _candidates(names: tuple[str, ...], cost: CostModel, worth: Scores) -> tuple[dict[str, Tensor], Tensor]:
    """One candidate at each position, the cheapest first, everything else being dense; and the values of them."""
    single = torch.eye(len(names), dtype=torch.float64)
    order = batched(cost, dict(zip(names, single, strict=True))).argsort(stable=True)
    return dict(zip(names, single[:, order], strict=True)), torch.cat([worth[name] for name in names])[order]


def widths(axis: Axis, minimum: int) -> list[int]:
    """What an axis may keep, ascending: its minimum, the multiples of its divisor above it, and everything."""
    step = min(axis.divisor, axis.size)
    return sorted({minimum, axis.size, *range(step * -(-minimum // step), axis.size, step)})


def values(scores: Scores) -> dict[str, Tensor]:
    """What keeping each unit is worth (c), in float64: never negative, and comparable across axes."""
    exact = finite(scores)
    every = torch.cat(list(exact.values()))
    if bool((every >= 0).all()):
        return exact
    scale = every.abs().mean()
    return {name: scale * F.softplus(score / scale) for name, score in exact.items()}


def unreachable(problem: Problem, cheapest: Tensor, question: Question) -> BudgetError:
    """The error for a limit below the cheapest choice (n) there is; for joint limits it names those that are missed."""
    sizes, cost = problem.sizes(cheapest), question.cost
    which = f" ({'; '.join(cost.violated(sizes))})" if isinstance(cost, Limits) else ""
    return BudgetError(
        f"no architecture of search space {question.space.name} is within {question.limit:.4g} {cost.unit}: "
        f"its cheapest one takes {question.spent(sizes):.4g}{which}. Raise the budget, or lower `minimum` in the space",
        smallest=sizes,
    )
