"""The exact choice by mixed-integer programming, for costs that are sums of functions of one or two axes.

MACs, parameters and tables of operators are such sums: cost(w) = c + sum_a f_a(w_a) + sum_ab f_ab(w_a, w_b). The f are
read off the cost model by changing one and two axes at a time, and the sum is compared with the model at random
architectures, so no cost is taken for what it is not. One binary x per axis and width, one continuous y per pair of
widths with the x as its marginals (the local polytope; on a tree of axes its relaxation is exact); solved by HiGHS
through scipy. HALP (arXiv 2210.06659) solves the knapsack with the couplings frozen at the current widths.
"""

import logging
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack
from torch import Tensor

from nas_prune.base.errors import RecipeError
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.solver.multiplier import cheapest
from nas_prune.methods.selectors.solver.problem import Problem, pose, unreachable

AGREE = 1e-6  # of the dense cost: sums of float32 tables round at 1e-7
CHECKED = 64  # architectures at which the sum is compared with the cost model
FEASIBLE = 1e-6  # HiGHS meets constraints to 1e-7 of their scale
GAP = 1e-6  # of the value, proved
SOLVED, ENDED, INFEASIBLE = 0, 1, 2  # scipy's words for how HiGHS came to its end; 1: by the clock


@dataclass(frozen=True)
class Tables:
    """A cost as a sum: ``base`` at the least widths, (w) per axis, (w v) per pair of axes that are coupled."""

    base: float
    single: list[Tensor]
    pair: dict[tuple[int, int], Tensor]

    def costs(self, choices: Tensor) -> Tensor:
        """Costs (b) of choices (b n)."""
        total = self.base + sum(table[choices[:, axis]] for axis, table in enumerate(self.single))
        for (first, second), table in self.pair.items():
            total = total + table[choices[:, first], choices[:, second]]
        return torch.as_tensor(total)


@selectors.register("milp")
def program(question: Question, *, seconds: float = 300.0) -> Decision:
    """The architecture of most value within the limit, exact to a gap of 1e-6; where HiGHS does not end within
    ``seconds`` by the clock, the best that it has found, and a warning says how far from the optimum it may be.

    Raises BudgetError where the limit cannot be met, RecipeError where the cost is no sum over pairs of axes, and where
    HiGHS has found nothing in its time; "optimal" knows neither of the last two.
    """
    problem, limit = pose(question), question.limit
    least = cheapest(problem)
    if question.spent(problem.sizes(least)) > limit:
        raise unreachable(problem, least, question)
    tables = tabulate(problem)
    for bound in (limit, limit * (1 - 2 * FEASIBLE)):
        choice = solve(replace(problem, limit=bound), tables, seconds=seconds)
        if choice is not None and question.spent(problem.sizes(choice)) <= limit:
            return Decision(problem.arch(choice, question.scores))
    return Decision(problem.arch(least, question.scores))


def tabulate(problem: Problem) -> Tables:
    """The cost as a sum of tables. Raises RecipeError where it is not one."""
    counts, least = problem.counts.tolist(), problem.smallest
    base = float(problem.costs(least[None]))
    single = [problem.costs(_changed(least, {axis: torch.arange(n)})) - base for axis, n in enumerate(counts)]
    dense = abs(float(problem.costs(problem.dense[None])))
    pair = {}
    for first, second in combinations(range(len(counts)), 2):
        if counts[first] > 1 and counts[second] > 1:
            grid = torch.cartesian_prod(torch.arange(counts[first]), torch.arange(counts[second])).T
            both = problem.costs(_changed(least, {first: grid[0], second: grid[1]})).reshape(counts[first], -1)
            table = both - base - single[first][:, None] - single[second]
            if float(table.abs().max()) > 1e-3 * AGREE * dense:
                pair[first, second] = table
    tables = Tables(base, single, pair)
    _compare(tables, problem, AGREE * dense)
    return tables


def _changed(choice: Tensor, positions: dict[int, Tensor]) -> Tensor:
    """Choices (b n): one choice (n) with positions (b) of some axes."""
    trials = choice.repeat(len(next(iter(positions.values()))), 1)
    for axis, position in positions.items():
        trials[:, axis] = position
    return trials


def _compare(tables: Tables, problem: Problem, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(CHECKED, len(problem.counts), generator=generator, dtype=torch.float64)
    choices = torch.cat([(share * problem.counts).long(), problem.dense[None]])
    off = float((tables.costs(choices) - problem.costs(choices)).abs().max())
    if off > tolerance:
        raise RecipeError(
            f"the cost in {problem.cost.unit} is not a sum over pairs of axes (such a sum is {off:.4g} off), "
            f'so the selector "milp" cannot take it; choose the selector "optimal"'
        )


def solve(problem: Problem, tables: Tables, *, seconds: float = 300.0) -> Tensor | None:
    """The best choice (n), None where nothing is within the limit. RecipeError where HiGHS finds none in time."""
    counts = problem.counts.tolist()
    price = np.concatenate([table.flatten().numpy() for table in (*tables.single, *tables.pair.values())])
    worth = np.zeros(len(price))
    worth[: sum(counts)] = np.concatenate([problem.values[axis, :n].numpy() for axis, n in enumerate(counts)])
    room = problem.limit - tables.base
    scale = max(abs(room), 1e-9 * float(np.abs(price).max()))  # a limit of the order of one, whatever its unit
    result = milp(
        -worth / max(float(worth.max()), 1e-300),
        integrality=np.arange(len(price)) < sum(counts),
        bounds=Bounds(0, 1),
        constraints=[_marginals(counts, tables), LinearConstraint(price[None] / scale, -np.inf, room / scale)],
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    if result.status == ENDED and result.x is not None:
        text = f"HiGHS proved no optimum in {seconds:g} s; its best may lack {100 * result.mip_gap:.2g} % of the value"
        logging.getLogger(__name__).warning("%s", text)
    elif result.status not in (SOLVED, INFEASIBLE):
        raise RecipeError(
            f"HiGHS found nothing in {seconds:g} s for {sum(counts)} widths and {len(tables.pair)} pairs of "
            f'axes ({result.message}); choose the selector "optimal", or raise `divisor` in the space'
        )
    if result.x is None:
        return None
    chosen = np.split(result.x[: sum(counts)], np.cumsum(counts)[:-1])
    return torch.tensor([int(each.argmax()) for each in chosen])


def _marginals(counts: list[int], tables: Tables) -> LinearConstraint:
    """One width per axis; the sums of a pair's y along either side are the x of the other side."""
    start = np.concatenate([[0], np.cumsum(counts)])
    size = start[-1] + sum(table.numel() for table in tables.pair.values())
    axis = np.repeat(np.arange(len(counts)), counts)
    rows = [coo_array((np.ones(start[-1]), (axis, np.arange(start[-1]))), (len(counts), size))]
    at = start[-1]
    for pair, table in tables.pair.items():
        for position, one in zip(pair, np.divmod(np.arange(table.numel()), counts[pair[1]]), strict=True):
            count = counts[position]
            row = np.concatenate([one, np.arange(count)])
            column = np.concatenate([at + np.arange(table.numel()), start[position] + np.arange(count)])
            sign = np.concatenate([np.ones(table.numel()), -np.ones(count)])
            rows.append(coo_array((sign, (row, column)), (count, size)))
        at += table.numel()
    right = np.concatenate([np.ones(len(counts)), np.zeros(sum(each.shape[0] for each in rows[1:]))])
    return LinearConstraint(vstack(rows, format="csr"), right, right)
