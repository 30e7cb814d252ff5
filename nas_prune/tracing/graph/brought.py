"""The model that a user brings: taken out of what wraps it, and left as it was.

Modules keep what they like in attributes: grids, caches, attention maps. Whatever runs a model on tensors without
numbers would leave such tensors there, so all that can be reached from the model is put back afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from nas_prune.base.errors import TraceError

CODE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial, Tensor)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile, DataParallel and DistributedDataParallel; its names have no prefix.

    Raises TraceError where a part of it is compiled, or TorchScript: that has no eager code to capture.
    """
    while isinstance(model, OptimizedModule | DataParallel | DistributedDataParallel):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    for path, module in model.named_modules():
        if isinstance(module, OptimizedModule | torch.jit.ScriptModule):
            what = "TorchScript" if isinstance(module, torch.jit.ScriptModule) else "wrapped by torch.compile"
            raise TraceError(
                f"{path or 'the model'} is {what}; give the module that it was made of, and compile what is derived"
            )
    return model


def parametrized(model: nn.Module) -> bool:
    """Whether a part of the model computes its weights from other parameters: weight norm, spectral norm ..."""
    return any(is_parametrized(module) or _normed(module) for module in model.modules())


def bake(model: nn.Module) -> None:
    """Let every weight that a model computes from other parameters be a parameter of its own, in place."""
    for module in [each for each in model.modules() if is_parametrized(each) or _normed(each)]:
        modes = {each: each.training for each in module.modules()}
        module.eval()  # spectral norm goes on with its iteration in training
        if is_parametrized(module):  # by hand: torch takes the property off a class that copies of the model share
            computed = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in computed.items():
                module.register_parameter(name, nn.Parameter(value.clone()))
        for hook in _normed(module):
            (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
            for key, loading in list(module._load_state_dict_pre_hooks.items()):  # which torch forgets
                if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
        for each in module.modules():
            each.training = modes.get(each, each.training)


def _normed(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    """The hooks with which older code norms weights."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A tensor by its name in a traced model, also where this one computes it."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever the model and its modules keep is afterwards what it was, whoever ran them inside the block."""
    before = [(each, _content(each)) for each in _reached(model)]
    try:
        yield
    finally:
        for each, content in before:
            _put_back(each, content)


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """What ``copy.deepcopy`` needs as its memo: it refuses tensors that a forward pass computed and a module kept."""
    held = [value for each in _reached(model) for value in _values(_content(each)) if isinstance(value, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def _reached(model: nn.Module) -> list[Any]:
    """The model, its modules, and the collections and plain objects that they hold, each once."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        each = waiting.pop()
        if id(each) not in found and not isinstance(each, CODE) and _content(each) is not None:
            found[id(each)] = each
            waiting += _values(_content(each))
    return list(found.values())


def _content(each: Any) -> Any:
    """A copy of what an object holds; None where it holds nothing that could be changed."""
    if isinstance(each, dict | list | set):
        return each.copy()
    if isinstance(each, tuple):
        return each
    held = getattr(each, "__dict__", None)
    return dict(held) if isinstance(held, dict) else None


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, dict) else list(content)


def _put_back(each: Any, content: Any) -> None:
    if isinstance(each, list):
        each[:] = content
    elif not isinstance(each, tuple):
        held = each if isinstance(each, dict | set) else each.__dict__
        held.clear()
        held.update(content)
