"""Shapley values by random permutations, as Shapley-NAS estimates them.

Xiao et al., "Shapley-NAS: Discovering Operation Contribution for Neural Architecture Search" (CVPR 2022,
arXiv 2206.09811). Start with all players, remove them in random order, and average what each removal takes away.

The public code differs from the paper's estimator, and ``paper_mode`` repeats it: a walk ends when its value has
fallen below half of the full one, players that were not reached count as 0 (so the estimates do not add up to
v(all) - v(none), and players of late importance are lost), and the score is the mean minus the standard deviation.
By default (ours) every walk goes to its end, or with a ``tolerance`` until the value has come that close to v(none):
the estimates then add up to v(all) - v(none) in every walk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_prune.methods.shapley.game import Game
from nas_prune.methods.shapley.walks import Walks, coalitions, walked


@dataclass(frozen=True)
class Sampled:
    """``values`` (n), the ``marginals`` (m n) behind them, and in how many walks each player was ``reached`` (n)."""

    values: Tensor
    marginals: Tensor
    reached: Tensor


def permutations(
    game: Game, orders: Tensor, *, paper_mode: bool = False, threshold: float = 0.5, tolerance: float = 0.0
) -> Sampled:
    """Estimates from the orders of removal (m n)."""
    left = coalitions(orders)
    if not paper_mode:
        marginals = Walks(orders, left, walked(game, left, tolerance)).marginals()
        return Sampled(marginals.mean(0), marginals, torch.full((game.players,), len(orders)))
    marginals = torch.zeros(orders.shape, dtype=torch.float64)
    reached = torch.zeros(game.players, dtype=torch.long)
    for row, (order, walk) in enumerate(zip(orders.tolist(), left, strict=True)):
        value = full = game(walk[0])
        for step, player in enumerate(order):
            if value < threshold * full:
                break
            after = game(walk[step + 1])
            marginals[row, player] = value - after
            reached[player] += 1
            value = after
    return Sampled(marginals.mean(0) - marginals.std(0, correction=0), marginals, reached)
