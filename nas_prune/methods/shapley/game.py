"""A game: what a coalition of players is worth. Each coalition is evaluated once, and the evaluations are counted."""

from collections.abc import Callable

import torch
from torch import Tensor

Value = Callable[[Tensor], float]


class Game:
    """``value`` of a boolean mask (n), the players that take part, remembered.

    ``choices``: groups of players of which the model needs one each (the candidates of one choice), if there are any.
    """

    def __init__(self, value: Value, players: int, choices: tuple[tuple[int, ...], ...] = ()) -> None:
        self.value, self.players, self.choices = value, players, choices
        self._known: dict[bytes, float] = {}

    @property
    def evaluations(self) -> int:
        """How many coalitions were evaluated here, each a forward pass over the batches."""
        return len(self._known)

    def __call__(self, coalition: Tensor) -> float:
        """The value of one coalition (n)."""
        key = coalition.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = float(self.value(coalition))
        return self._known[key]

    def values(self, coalitions: Tensor) -> Tensor:
        """Values (...) of coalitions (... n)."""
        flat = [self(coalition) for coalition in coalitions.flatten(0, -2)]
        return torch.tensor(flat, dtype=torch.float64).view(coalitions.shape[:-1])
