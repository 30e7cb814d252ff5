"""Exchange: what one multiplier leaves over, moves of one and two axes take up (ours).

A price per cost only reaches choices on the convex hull of value and cost; between them there is room. A move widens
one axis, or widens one and narrows another; the best move that fits is made until none is left. ``repair`` goes the
other way: it narrows axes, least value lost per cost saved, until the choice fits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nas_prune.methods.selectors.solver.problem import CHUNK, Problem


def improve(problem: Problem, choice: Tensor) -> Tensor:
    """The choice (n) after all moves that raise its value within the limit."""
    better = _best_move(problem, choice)
    while better is not None:
        choice = better
        better = _best_move(problem, choice)
    return choice


def repair(problem: Problem, choice: Tensor) -> Tensor | None:
    """A choice (n) within the limit, made from one that is not; None where narrowing does not lead there."""
    cost = float(problem.costs(choice[None]))
    while cost > problem.limit:
        axis, to, change = _steps(problem, choice, -1)
        trials = choice.repeat(len(axis), 1)
        trials[torch.arange(len(axis)), axis] = to
        costs = problem.costs(trials)
        saved = cost - costs
        if not bool((saved > 0).any()):
            return None
        rate = torch.where(saved > 0, -change / saved, torch.inf)
        best = int(rate.argmin())
        choice, cost = trials[best], float(costs[best])
    return choice


def _best_move(problem: Problem, choice: Tensor) -> Tensor | None:
    """The choice (n) after the move of most value among those that fit."""
    least = 1e-12 * float(problem.value(problem.dense[None]))
    for trials in _moves(problem, choice, least):
        fits = (problem.costs(trials) <= problem.limit).nonzero().flatten()
        if len(fits):
            return trials[int(fits[0])]
    return None


def _moves(problem: Problem, choice: Tensor, least: float) -> Iterator[Tensor]:
    """Trials (b n) that gain more than ``least``, best first, a chunk at a time."""
    up, down = _steps(problem, choice, 1), _steps(problem, choice, -1)
    stay = torch.zeros(1, dtype=torch.long), choice[:1], torch.zeros(1, dtype=torch.float64)  # the other axis may stay
    axis, to, change = (torch.cat(pair) for pair in zip(stay, down, strict=True))
    gain = up[2][:, None] + change
    allowed = (gain > least) & (up[0][:, None] != axis)
    allowed[:, 0] = gain[:, 0] > least
    first, second = allowed.nonzero(as_tuple=True)
    order = gain[first, second].sort(descending=True, stable=True).indices
    for part in torch.split(order, CHUNK) if len(order) else ():
        rows, wider, narrower = torch.arange(len(part)), first[part], second[part]
        trials = choice.repeat(len(part), 1)
        trials[rows, axis[narrower]] = to[narrower]
        trials[rows, up[0][wider]] = up[1][wider]
        yield trials


def _steps(problem: Problem, choice: Tensor, sign: int) -> tuple[Tensor, Tensor, Tensor]:
    """Moves of one axis by 1, 2, 4 ... positions: axis (m), new position (m), change of value (m)."""
    strides = [sign * 2**power for power in range(int(problem.counts.max()).bit_length())]
    to = choice[:, None] + torch.tensor(strides)
    axis, stride = ((to >= 0) & (to < problem.counts[:, None])).nonzero(as_tuple=True)
    to = to[axis, stride]
    return axis, to, problem.values[axis, to] - problem.values[axis, choice[axis]]
