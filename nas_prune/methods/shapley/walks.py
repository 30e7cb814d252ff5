"""Walks from the full coalition to the empty one, a player less at each step; every estimator here reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_prune.methods.shapley.game import Game


@dataclass(frozen=True)
class Walks:
    """``orders`` (m n): who is removed when. ``coalitions`` (m n+1 n): who is left. ``values`` (m n+1): their worth."""

    orders: Tensor
    coalitions: Tensor
    values: Tensor

    def marginals(self, values: Tensor | None = None) -> Tensor:
        """What each player's removal took away (m n), in ``values`` (m n+1) or those of the game."""
        steps = -(self.values if values is None else values).diff(dim=1)
        return torch.zeros_like(steps).scatter(1, self.orders, steps)

    def joined(self, others: "Walks") -> "Walks":
        """These walks and others."""
        parts = zip(vars(self).values(), vars(others).values(), strict=True)
        return Walks(*(torch.cat(part) for part in parts))

    def some(self, mask: Tensor) -> "Walks":
        """The walks of a mask or of indices."""
        return Walks(*(each[mask] for each in vars(self).values()))

    def distinct(self) -> int:
        """How many coalitions the walks meet, each counted once."""
        return len(torch.unique(self.coalitions.flatten(0, 1), dim=0))


def pairs(count: int, players: int, generator: torch.Generator) -> Tensor:
    """Orders (2 count, n): random ones, each followed by its reverse."""
    orders = torch.rand(count, players, generator=generator).argsort(1)
    return torch.stack([orders, orders.flip(1)], 1).flatten(0, 1)


def coalitions(orders: Tensor, choices: tuple[tuple[int, ...], ...] = ()) -> Tensor:
    """Who is left (m n+1 n) at each step of each order; the last one of each of ``choices`` is never removed."""
    steps = orders.shape[1] + 1
    rank = orders.argsort(1)
    left = rank[:, None, :] >= torch.arange(steps)[None, :, None]
    for choice in choices:
        members = torch.tensor(choice)
        last = members[rank[:, members].argmax(1)]
        left[torch.arange(len(orders)), :, last] = True
    return left


def walked(game: Game, left: Tensor, tolerance: float = 0.0) -> Tensor:
    """Values (m n+1) of the coalitions on each walk.

    With ``tolerance`` > 0 a walk ends once its value is within that share of |v(all) - v(end)| from its end's value,
    and the rest of the way is a straight line: the marginals still add up (Ghorbani and Zou, arXiv 1904.02868, end a
    walk there too, but leave the rest at 0).
    """
    if tolerance == 0:
        return game.values(left)
    rows = []
    for walk in left:
        first, end = game(walk[0]), game(walk[-1])
        values = [first]
        while len(values) < len(walk) and abs(values[-1] - end) > tolerance * abs(first - end):
            values.append(game(walk[len(values)]))
        rest = torch.linspace(values[-1], end, len(walk) - len(values) + 1, dtype=torch.float64)
        rows.append(torch.cat([torch.tensor(values[:-1], dtype=torch.float64), rest]))
    return torch.stack(rows)
