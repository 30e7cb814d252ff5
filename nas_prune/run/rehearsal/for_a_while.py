"""For a while: what takes longer than it may is left where it is."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def for_a_while(ask: Callable[[], object], seconds: float) -> bool:
    """Whether it comes to its end; otherwise it is left at the first call of torch on a tensor after so many seconds.

    What it changes is to be thrown away: nobody knows how far it has come. Only whether gradients are recorded is again
    as it was; what sets such states has no tensor, and is not disturbed, nor is anything on the way out.
    """
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()), _Until(time.monotonic() + seconds):
            ask()
    except TimeoutError:
        return False
    return True


class _Until(TorchFunctionMode):
    """Raises TimeoutError, once, after a moment."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        if time.monotonic() > self.end and any(isinstance(each, Tensor) for each in given):
            self.end = math.inf
            raise TimeoutError
        return func(*args, **(kwargs or {}))
