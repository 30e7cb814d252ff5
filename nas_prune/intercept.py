"""Gate an eager model without touching its code: intercept the one function call that reads an axis.

The record of the trace says which call that is: "inside module ``blocks.0.attn``, the first attention call". A hook
opens a ``TorchFunctionMode`` while the module runs, and the k-th call of that kind gets a gated operand, or is
replaced by its masked form. Hooks also run when gradient checkpointing replays a block, and leave state_dict alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from nas_prune.errors import TraceError
from nas_prune.tracing import Axes, masked
from nas_prune.tracing.walk import Site

Mix = Callable[[Tensor, Tensor], Tensor]
Call = tuple[int, str, int]  # (which call of the module, kind of function, how many of that kind before it there)

KINDS: dict[Any, str] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), "convolution"),
    F.linear: "linear",
    F.layer_norm: "layer_norm",
    F.rms_norm: "rms_norm",
    F.group_norm: "group_norm",
    F.batch_norm: "batch_norm",
    F.scaled_dot_product_attention: "attention",
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__), "matmul"),
    **dict.fromkeys((torch.mean, Tensor.mean), "mean"),
}
NODE_KINDS = {
    **dict.fromkeys(("conv1d.default", "conv2d.default", "conv3d.default", "conv2d.padding"), "convolution"),
    "linear.default": "linear",
    "layer_norm.default": "layer_norm",
    "rms_norm.default": "rms_norm",
    "group_norm.default": "group_norm",
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training.default", "_native_batch_norm_legit.no_stats"), "batch_norm"
    ),
    "scaled_dot_product_attention.default": "attention",
    **dict.fromkeys(("matmul.default", "bmm.default", "mm.default"), "matmul"),
    "mean.dim": "mean",
}


class Board:
    """Keep values per axis and masks per site of the current forward pass; empty when the model runs ungated."""

    def __init__(self) -> None:
        self.keep: dict[str, Tensor] = {}
        self.masks: list[Tensor | None] = []
        self.running: list[_Interception] = []
        self.entered: Counter[int] = Counter()

    def open(self, keep: dict[str, Tensor], masks: list[Tensor | None]) -> None:
        """A new forward pass begins."""
        self.keep, self.masks = keep, masks
        self.entered.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Board:
        return Board()


@dataclass
class Interceptor:
    """Opens the interception while one module runs. The only hook that this package registers.

    ``calls``: which call gets which site; ``times``: how often a forward pass calls the module.
    """

    sites: list[Site]
    calls: dict[Call, int]
    times: int
    board: Board
    mix: Mix | None

    def enter(self, module: nn.Module, arguments: Any) -> None:  # noqa: ARG002
        """Forward pre-hook."""
        mode = _Interception(self, self.board.entered[id(self)] % self.times)
        self.board.entered[id(self)] += 1
        self.board.running.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG002
        """Forward hook, called also when the module raised."""
        self.board.running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Interception(TorchFunctionMode):
    """Counts the calls of each kind and gates those that the record names."""

    def __init__(self, interceptor: Interceptor, call: int) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.call = call
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, board = KINDS.get(func), self.interceptor.board
        if kind is None or not board.masks:
            return func(*args, **(kwargs or {}))
        index = self.interceptor.calls.get((self.call, kind, self.seen[kind]))
        self.seen[kind] += 1
        keep = None if index is None else board.masks[index]
        if keep is None or index is None:
            return func(*args, **(kwargs or {}))
        site = self.interceptor.sites[index]
        if site.how == "mask":
            return func(*_gate_operand(site, keep, self.interceptor.mix, list(args)), **(kwargs or {}))
        for outer in board.running[: board.running.index(self)]:
            outer.seen[kind] += 1  # they will not see the call, as its masked form takes its place
        return _masked(site, keep, list(args), kwargs or {})


def _masked(site: Site, keep: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The masked form of a call."""
    x = args[0]
    if site.how == "layer_norm":
        call = _bound(("input", "shape", "weight", "bias", "eps"), (None, None, None, None, 1e-5), args, kwargs)
        return masked.layer_norm(x, call["weight"], call["bias"], call["eps"], keep)
    if site.how == "rms_norm":
        call = _bound(("input", "shape", "weight", "eps"), (None, None, None, None), args, kwargs)
        return masked.rms_norm(x, call["weight"], call["eps"] or torch.finfo(x.dtype).eps, keep)
    if site.how == "group_norm":
        call = _bound(("input", "num_groups", "weight", "bias", "eps"), (None, None, None, None, 1e-5), args, kwargs)
        return masked.group_norm(x, call["num_groups"], (call["weight"], call["bias"]), call["eps"], keep)
    if site.how == "standardize":
        names = ("input", "mean", "var", "weight", "bias", "training", "momentum", "eps")
        call = _bound(names, (None, None, None, None, None, False, 0.1, 1e-5), args, kwargs)
        return masked.standardize(x, call["weight"], call["eps"], keep)
    call = _bound(("input", "dim", "keepdim"), (None, None, False), args, kwargs)
    dims = (call["dim"],) if isinstance(call["dim"], int) else tuple(call["dim"])
    return masked.mean(x, dims, call["keepdim"], keep.reshape([-1 if d == site.dim else 1 for d in range(x.ndim)]))


def _gate_operand(site: Site, keep: Tensor, mix: Mix | None, args: list[Any]) -> list[Any]:
    """Gate the input, or the weight's columns where the weight is the smaller of the two (the result is the same)."""
    x = args[site.arg]
    weight = args[1] if site.weight is not None else None
    if weight is not None and mix is None and weight.numel() < x.numel():
        inside = keep[: weight.shape[1]] if keep.shape[0] != weight.shape[1] else keep
        args[1] = weight * inside.reshape(1, -1, *(1 for _ in weight.shape[2:]))
        return args
    gate = keep.reshape([-1 if dim == site.dim else 1 for dim in range(x.ndim)])
    args[site.arg] = x * gate if mix is None else mix(x, gate)
    return args


def _bound(
    names: tuple[str, ...], defaults: tuple[Any, ...], args: list[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positional and keyword arguments of a functional call by name."""
    return {**dict(zip(names, defaults, strict=True)), **dict(zip(names, args, strict=False)), **kwargs}


def intercept(model: nn.Module, axes: Axes, sites: list[Site], board: Board, mix: Mix | None) -> None:
    """Register the hooks that gate ``sites`` of an eager model; masks are read from ``board`` at every call."""
    modules = dict(model.named_modules(remove_duplicate=False))
    runs, calls_of = _runs(axes), _calls(axes)
    by_owner: dict[str, dict[Call, int]] = {}
    for index, site in enumerate(sites):
        owner, call = _locate(axes, site.node, runs, calls_of)
        by_owner.setdefault(owner, {}).setdefault(call, index)
    for owner, calls in by_owner.items():
        hook = Interceptor(sites, calls, len(runs[owner]), board, mix)
        modules[owner].register_forward_pre_hook(hook.enter)
        modules[owner].register_forward_hook(hook.leave, always_call=True)


def _runs(axes: Axes) -> dict[str, list[str]]:
    """Module path -> its calls in order, by the key that export gives to each call."""
    runs: dict[str, list[str]] = {}
    for node in axes.walk.captured.graph.nodes:
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if key not in runs.setdefault(path, []):
                runs[path].append(key)
    return runs


def _calls(axes: Axes) -> dict[tuple[str, str], list[Node]]:
    """(call of a module, kind) -> its calls of that kind in order, those of inner modules too."""
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in axes.walk.captured.graph.nodes:
        kind = NODE_KINDS.get(node.target.__name__) if node.op == "call_function" else None
        for key in node.meta.get("nn_module_stack", {}) if kind else ():
            calls.setdefault((key, str(kind)), []).append(node)
    return calls


def _locate(
    axes: Axes, node: Node, runs: dict[str, list[str]], calls: dict[tuple[str, str], list[Node]]
) -> tuple[str, Call]:
    """Where an eager model runs a node: the innermost module, and which call in it."""
    kind = NODE_KINDS.get(node.target.__name__)  # type: ignore[union-attr]
    if kind is None:
        raise TraceError(f"no way to gate {axes.walk.where(node)} in an eager model; freeze its axes")
    key = next(reversed(node.meta["nn_module_stack"]))
    owner = axes.walk.captured.owner(node)
    return owner, (runs[owner].index(key), kind, calls[key, kind].index(node))


def release(model: nn.Module) -> None:
    """Remove our hooks, and only ours."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Interceptor)]:
                hooks.pop(key)
                module._forward_hooks_always_called.pop(key, None)


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model that is free of our hooks."""
    result = copy.deepcopy(model)
    release(result)
    return result
