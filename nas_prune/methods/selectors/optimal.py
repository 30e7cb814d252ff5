"""Near-exact choice: the most value within the limit, over the widths of all axes together.

One threshold for all scores (``ranked``) forgets what a unit costs, so a layer whose scores are a little lower falls to
its floor although it is cheap. Here a unit is kept where it is worth what it costs: HALP's program (arXiv 2210.06659),
solved by a Lagrange multiplier (``multiplier``) and a local search (``exchange``) instead of HALP's knapsack, so that
costs may couple axes in any way, learned predictors included. The exact referee is ``program``.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nas_prune.base.errors import BudgetError
from nas_prune.methods.selectors.ranked import ranked
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.solver.exchange import improve, repair
from nas_prune.methods.selectors.solver.multiplier import cheapest, priced
from nas_prune.methods.selectors.solver.problem import Problem, pose, unreachable

RATIOS = 65  # uniform architectures that are tried as a start
REFINED = 8  # choices that the local search goes on from; three leave three times the gap to the exact program
ROUNDING = 1e-5  # a predictor in float32 answers one architecture and a batch a little differently


@selectors.register("optimal")
def optimal(question: Question) -> Decision:
    """The architecture of most value that is found within the limit; never worth less than that of ``ranked``.

    Deterministic. Raises BudgetError where even the cheapest architecture that is found is above the limit, and
    DivergedError where a score is not a finite number.
    """
    problem = pose(question)
    least = cheapest(problem)
    if question.spent(problem.sizes(least)) > question.limit:
        raise unreachable(problem, least, question)
    starts = _starts(problem, least, question)
    for bound in (question.limit, question.limit * (1 - ROUNDING)):
        choice = solve(replace(problem, limit=bound), starts)
        if question.spent(problem.sizes(choice)) <= question.limit:
            return Decision(problem.arch(choice, question.scores))
    return Decision(problem.arch(least, question.scores))


def solve(problem: Problem, starts: Tensor) -> Tensor:
    """The best choice (n) found from ``starts`` (s n), of which one or more should fit."""
    found = torch.unique(torch.cat([starts, priced(problem, starts)]), dim=0)
    excess = problem.costs(found) - problem.limit
    fitting, above = found[excess <= 0], found[excess > 0][excess[excess > 0].argsort()[:REFINED]]
    repaired = [choice for choice in (repair(problem, each) for each in above) if choice is not None]
    candidates = torch.stack([*fitting, *repaired]) if len(fitting) or repaired else starts[:1]
    candidates = torch.unique(candidates, dim=0)
    candidates = candidates[problem.value(candidates).argsort(descending=True, stable=True)]
    refined = torch.stack([improve(problem, each) for each in candidates[:REFINED]])
    return refined[int(problem.value(refined).argmax())]


def _starts(problem: Problem, least: Tensor, question: Question) -> Tensor:
    """The choices (s n) that the search starts from: the cheapest, the ranked one, the widest uniform one that fits."""
    starts = [least]
    ratios = torch.linspace(0, 1, RATIOS, dtype=torch.float64)
    uniform = (ratios[:, None] * problem.dense).round().long()
    fits = problem.costs(uniform) <= problem.limit
    if bool(fits.any()):
        starts.append(uniform[int(fits.nonzero().max())])
    try:
        starts.append(problem.choice(ranked(question).arch.sizes(question.space.free)))
    except BudgetError:  # a cost that is not monotone may be met although the smallest architecture does not
        starts.append(problem.smallest)
    return torch.stack(starts)
