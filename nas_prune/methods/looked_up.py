"""Tensors that are looked up when somebody looks at them: most gates do not look at the weights that they gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor


class LookedUp(Sequence[Tensor]):
    """A sequence of what ``look_up()`` gives."""

    def __init__(self, look_up: Callable[[], Sequence[Tensor]]) -> None:
        self.look_up = look_up

    @cached_property
    def found(self) -> Sequence[Tensor]:
        """The tensors."""
        return self.look_up()

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)
