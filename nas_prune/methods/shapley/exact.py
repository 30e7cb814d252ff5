"""Exact Shapley values, by evaluating every coalition.

phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S))        (Shapley, 1953)
"""

from math import comb

import torch
from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.methods.shapley.game import Value

MOST = 16  # players, 65536 evaluations


def exact(value: Value, players: int) -> Tensor:
    """Shapley values (n). Raises SpaceError above 16 players."""
    if players > MOST:
        raise SpaceError(
            f"exact Shapley values of {players} players need 2^{players} evaluations; "
            f"the most is {MOST} players, estimate them instead"
        )
    coalitions = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1
    values = torch.tensor([float(value(coalition)) for coalition in coalitions.bool()], dtype=torch.float64)
    sizes = torch.arange(players + 1)
    joined = [0.0] + [1 / (players * comb(players - 1, int(k) - 1)) for k in sizes[1:]]
    absent = [1 / (players * comb(players - 1, int(k))) for k in sizes[:-1]] + [0.0]
    with_i, without_i = (torch.tensor(each, dtype=torch.float64)[coalitions.sum(1)] for each in (joined, absent))
    weights = torch.where(coalitions.bool(), with_i[:, None], -without_i[:, None])
    return (weights * values[:, None]).sum(0)
