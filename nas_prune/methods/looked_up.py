"""Tensors that are looked up when somebody looks at them: most gates do not look at the weights that they gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor


class LookedUp(Sequence[Tensor]):
    """A sequence of what ``look_up()`` gives."""

    def __init__(self, look_up: Callable[[], Sequence[Tensor]]) -> None:
        self._look_up = look_up
        self._found: Sequence[Tensor] | None = None

    @property
    def found(self) -> Sequence[Tensor]:
        """The tensors."""
        self._found = self._look_up() if self._found is None else self._found
        return self._found

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.found)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)
