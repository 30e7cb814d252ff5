"""One score under the control of others: the relaxed program of COPS, solved by its multipliers.

Wimmer, Mehnert and Condurache, "COPS: Controlled Pruning Before Training Starts" (arXiv 2107.12673); its abstract was
at hand, and the program is our reading of it. Items u of values s_i,u >= 0 and costs c_u > 0:

    maximise  <s_0, m>   such that   <s_i, m> >= tau_i,   <c, m> <= limit,   0 <= m <= 1

At the optimum an item is taken, all of it, where its combined score w_0 s_0 + ... + w_n s_n is more than theta c, and
not at all where it is less; only ties are split. With one control, w = (1 - t, t) is found by bisection, as what is
kept of the control never falls with t. With several the multipliers are those of a linear program (HiGHS).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

HALVINGS = 60
SLACK = 1e-9  # of a control, that rounding may miss


@dataclass(frozen=True)
class Relaxed:
    """``scores`` (n u), the first of which is maximised; ``costs`` (u) and their ``limit``; ``shares`` (n - 1): what
    the others keep at least, of the most that each could keep alone within the limit."""

    scores: Tensor
    costs: Tensor
    limit: float
    shares: Tensor

    @property
    def least(self) -> Tensor:
        """What the controls keep at least (n - 1)."""
        alone = [score @ self.filled(score) for score in self.scores[1:]]
        return self.shares * torch.stack(alone) if alone else self.shares

    def filled(self, combined: Tensor) -> Tensor:
        """The share (u) of each item that is taken where the densest come first, as far as the limit goes."""
        order = (combined / self.costs).argsort(descending=True, stable=True)
        before = self.costs[order].cumsum(0) - self.costs[order]
        share = ((self.limit - before) / self.costs[order]).clamp(0, 1)
        return torch.zeros_like(share).scatter(0, order, share)


def solve(problem: Relaxed) -> tuple[Tensor, Tensor] | None:
    """The weights (n) of the scores, which sum to one, and the share (u) of each item that is taken; None where the
    controls cannot be met together."""
    if len(problem.scores) <= 2:
        return _bisected(problem)
    return _programmed(problem)


def _bisected(problem: Relaxed) -> tuple[Tensor, Tensor]:
    """With one control, or none: the least weight of the control at which it is met."""
    low, high, least = 0.0, 1.0, problem.least

    def taken(weight: float) -> Tensor:
        return problem.filled(_weights(weight, problem) @ problem.scores)

    def kept(mask: Tensor) -> Tensor:
        return problem.scores[1] @ mask - least[0]

    if not len(least) or float(kept(taken(0.0))) >= -SLACK * float(least[0]):
        return _weights(0.0, problem), taken(0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if float(kept(taken(middle))) >= 0 else (middle, high)
    below, above = taken(low), taken(high)
    lacks, more = -kept(below), kept(above).clamp(min=0)
    part = lacks / (lacks + more) if float(more) > 0 else torch.ones_like(lacks)
    return _weights(high, problem), below + part * (
        above - below
    )  # both are best at this weight: so is what is between


def _weights(weight: float, problem: Relaxed) -> Tensor:
    """Those of the scores (n), where the only control has this one."""
    return problem.scores.new_tensor([1 - weight, weight])[: len(problem.scores)]


def _programmed(problem: Relaxed) -> tuple[Tensor, Tensor] | None:
    """With any number of controls."""
    scores, costs = problem.scores.numpy(), problem.costs.numpy()
    least = problem.least.numpy() * (1 - SLACK)
    rows = np.concatenate([-scores[1:], costs[None]])
    found = linprog(-scores[0], A_ub=rows, b_ub=[*-least, problem.limit], bounds=(0, 1), method="highs")
    if found.x is None:
        return None
    weights = torch.tensor([1.0, *-found.ineqlin.marginals[:-1]], dtype=torch.float64).clamp(min=0)
    return weights / weights.sum(), torch.tensor(found.x, dtype=torch.float64)
