"""A second device that computes like the CPU: its tensors say that they are elsewhere, and hold numbers all the same.

Torch knows the device ``meta``, whose tensors have no numbers; here they have some. So criteria that look at numbers,
gradients, optimizers run without a GPU, to the bit as on the CPU, and a tensor that was left there is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PLACE = "meta"
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class There(Tensor):
    """A tensor elsewhere; ``here`` is what it holds, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        facts = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.size(), **facts, device=PLACE)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, dict(kwargs or {}))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.here[here(index)] = here(value)

    def tolist(self) -> Any:
        return self.here.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = There(self.here.clone())
        learned = isinstance(self, nn.Parameter)
        memo[id(self)] = nn.Parameter(made, self.requires_grad) if learned else made.requires_grad_(self.requires_grad)
        return memo[id(self)]


def here(value: Any) -> Any:
    """What is elsewhere, brought back; anything else as it is."""
    return value.here if isinstance(value, There) else value


def module_there(module: nn.Module) -> nn.Module:
    """The module itself, all its parameters and buffers moved."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in [(n, v) for n, v in held.items() if v is not None and not isinstance(v, There)]:
                fresh = moved.get(id(value), There(value.detach().clone()))
                if isinstance(value, nn.Parameter) and id(value) not in moved:
                    fresh = nn.Parameter(fresh, requires_grad=value.requires_grad)
                moved[id(value)] = held[name] = fresh
    return module


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, tensors can be made there."""
    with _Dispatched(), _Called():
        yield


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, dict(kwargs or {}))


class _Called(TorchFunctionMode):
    """Numbers from Python become tensors there before torch makes empty ones of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor) and _there(kwargs.get("device")):
            return There(func(*args, **{**kwargs, "device": None}))
        return func(*args, **kwargs)


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == PLACE


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation, on the CPU. Raises RuntimeError where a tensor of the CPU meets one from elsewhere."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    inside = [value for value in tensors if isinstance(value, There)]
    left = [tuple(each.shape) for each in tensors if each.ndim and not isinstance(each, There)]
    moving = func is torch.ops.aten.copy_.default
    if inside and left and not moving and func not in _INDEXED:
        raise RuntimeError(f"{func} got tensors of two devices; those of shape {left} are on the CPU")
    result_there = bool(inside)
    if kwargs.get("device") is not None:
        result_there = _there(kwargs["device"])
        kwargs["device"] = torch.device("cpu")
    result = func(*tree_map(here, args), **tree_map(here, kwargs))
    if moving:
        return args[0]
    known = {id(each.here): each for each in inside}  # what works in place gives the tensor that it got

    def wrapped(value: Any) -> Any:
        return known[id(value)] if id(value) in known else There(value) if isinstance(value, Tensor) else value

    return tree_map(wrapped, result) if result_there else result
