"""For a while: what takes longer than it may is left where it is."""

import time
from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


def for_a_while(ask: Callable[[], object], seconds: float) -> bool:
    """Whether it comes to its end; otherwise it is left at its first call of torch after so many seconds.

    What it changes is to be thrown away: nobody knows how far it has come.
    """
    try:
        with _Until(time.monotonic() + seconds):
            ask()
    except TimeoutError:
        return False
    return True


class _Until(TorchFunctionMode):
    """Raises TimeoutError from a moment on."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self.end:
            raise TimeoutError
        return func(*args, **(kwargs or {}))
