"""Operators that torch differentiates once, written so that it can twice: for criteria that ask for the Hessian."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """In the block attention, and hard sigmoids, have second derivatives, and gradients are on."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _Written():
        yield


class _Written(TorchFunctionMode):
    """Hard sigmoids as their formula."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6((args[0] if args else (kwargs or {})["input"]) + 3) / 6
        return func(*args, **(kwargs or {}))
