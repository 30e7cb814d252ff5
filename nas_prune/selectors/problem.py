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

from nas_prune.arch import Arch
from nas_prune.axes import Axis
from nas_prune.costs import CostModel
from nas_prune.costs.batched import batched
from nas_prune.costs.limits import Limits
from nas_prune.errors import BudgetError, DivergedError
from nas_prune.selectors.selector import Scores
from nas_prune.space import SearchSpace

CHUNK = 8192  # architectures per question to the cost model: a few megabytes


@dataclass(frozen=True)
class Problem:
    """A choice (n) holds one position per axis; positions run from the least width to the full one.

    ``widths`` and ``values`` (n w): per axis and position, the last one repeated; ``counts`` (n): positions there are.
    """

    names: tuple[str, ...]
    widths: Tensor
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
        widths = self.widths.gather(1, choices.T)
        parts = torch.split(widths, CHUNK, 1)
        return torch.cat([batched(self.cost, dict(zip(self.names, part, strict=True))) for part in parts])

    def sizes(self, choice: Tensor) -> dict[str, float]:
        """Width per axis of a choice (n)."""
        widths = self.widths.gather(1, choice[:, None]).flatten()
        return dict(zip(self.names, widths.tolist(), strict=True))

    def choice(self, sizes: dict[str, int]) -> Tensor:
        """The choice (n) of allowed widths at or below these."""
        wanted = torch.tensor([[float(sizes[name])] for name in self.names], dtype=torch.float64)
        return torch.minimum((self.widths <= wanted).sum(1) - 1, self.dense).clamp(min=0)

    def arch(self, choice: Tensor, scores: Scores) -> Arch:
        """The architecture of a choice (n): the units of the best scores."""
        return Arch(
            {name: scores[name].topk(int(width)).indices.tolist() for name, width in self.sizes(choice).items()}
        )


def pose(scores: Scores, cost: CostModel, limit: float, space: SearchSpace) -> Problem:
    """The problem of a selector's arguments. Raises DivergedError where a score is not a number."""
    allowed = [widths(axis, space.minimum[name]) for name, axis in space.free.items()]
    counts = torch.tensor([len(each) for each in allowed])
    longest = int(counts.max())
    worth = values({name: scores[name] for name in space.free})
    kept = torch.tensor([[*each, *[each[-1]] * (longest - len(each))] for each in allowed])
    sums = [F.pad(worth[name].sort(descending=True).values.cumsum(0), (1, 0)) for name in space.free]
    table = torch.stack([total[each] for total, each in zip(sums, kept, strict=True)])
    return Problem(tuple(space.free), kept.double(), table, counts, cost, limit)


def widths(axis: Axis, minimum: int) -> list[int]:
    """What an axis may keep, ascending: its minimum, the multiples of its divisor above it, and everything."""
    step = min(axis.divisor, axis.size)
    return sorted({minimum, axis.size, *range(step * -(-minimum // step), axis.size, step)})


def values(scores: Scores) -> dict[str, Tensor]:
    """What keeping each unit is worth (c), in float64: never negative, and comparable across axes."""
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise DivergedError(f"scores of axis {name} are not finite numbers; lower the learning rate of the gates")
    exact = {name: score.detach().double().cpu() for name, score in scores.items()}
    every = torch.cat(list(exact.values()))
    if bool((every >= 0).all()):
        return exact
    scale = every.abs().mean()
    return {name: scale * F.softplus(score / scale) for name, score in exact.items()}


def unreachable(problem: Problem, cheapest: Tensor, space: SearchSpace) -> BudgetError:
    """The error for a limit below the cheapest choice (n) there is; for joint limits it names those that are missed."""
    sizes, cost = problem.sizes(cheapest), problem.cost
    which = f" ({'; '.join(cost.violated(sizes))})" if isinstance(cost, Limits) else ""
    return BudgetError(
        f"no architecture of search space {space.name} is within {problem.limit:.4g} {cost.unit}: "
        f"its cheapest one takes {float(cost(sizes).detach()):.4g}{which}. "
        f"Raise the budget, or lower `minimum` in the space"
    )
