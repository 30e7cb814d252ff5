"""Follow: what shows how far a loop has come, and hands on its steps."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Follow = Callable[[Iterable[Item], str], Iterable[Item]]
"""``(steps, name) -> steps``, such as the bars' own ``follow``, or ``lambda steps, _: steps`` to show nothing."""
