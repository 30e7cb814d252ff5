"""Gate an eager model without touching its code: intercept the one function call that reads an axis.

The record of the trace says which call that is: "inside module ``blocks.0.attn``, the first attention call". A hook
opens a ``TorchFunctionMode`` while the module runs, and the k-th call of that kind gets a gated operand, or is
replaced by its masked form. What a choice does not compute for now is counted as if it had been. Hooks also run when
gradient checkpointing replays a block, and leave state_dict alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from nas_prune.base.errors import TraceError
from nas_prune.methods.eager_calls import KINDS, NODE_KINDS, OPERANDS, counts
from nas_prune.methods.masks import Mask, Mix
from nas_prune.methods.writing import Act, Writer, Written, along, writing
from nas_prune.ops import Choice
from nas_prune.tracing import Axes
from nas_prune.tracing.graph.brought import bake, computed_tensors, unwrapped
from nas_prune.tracing.graph.multihead import open_up
from nas_prune.tracing.masked import FILLS, FORMS, WEIGHTS
from nas_prune.tracing.walk import Site

CallKey = tuple[int, str, int]  # (which call of the module, kind of function, how many of that kind before it there)


class Board:
    """Keep values per axis and masks per site of the last forward pass.

    ``inside``: whether one is on its way; the backbone called by itself computes what it says. ``released``: the hooks
    that read this are gone. ``counted``: hook, call of its module, and what that saw, for who asks.
    """

    def __init__(self) -> None:
        self.inside = False
        self.released = False
        self.counted: list[tuple[Interceptor, int, Counter[str]]] = []
        self.counting = False
        self.keep: dict[str, Tensor] = {}
        self.masks: list[Mask] = []
        self.mixes: list[list[Mix]] = []
        self.acts: Mapping[str, Act] = {}
        self.running: list[_Interception] = []
        self.entered: Counter[int] = Counter()
        self.masking = False

    def open(
        self,
        keep: dict[str, Tensor],
        masks: list[Mask],
        mixes: list[list[Mix]] | None = None,
        acts: Mapping[str, Act] | None = None,
    ) -> None:
        """A new forward pass begins. ``acts``: what gates do where their axes are written."""
        self.keep, self.masks, self.mixes, self.acts, self.inside = keep, masks, mixes or [], acts or {}, True
        self.entered.clear()

    def close(self) -> None:
        """It is over. Every pass begins alike, so torch.compile compiles one."""
        self.inside = False
        self.entered.clear()

    @property
    def gating(self) -> bool:
        """Whether calls are gated now: in a forward pass, or in a backward pass, which repeats checkpointed parts."""
        return not self.masking and (self.inside or torch._C._current_graph_task_id() != -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Board:
        return Board()


@dataclass
class Interceptor:
    """Opens the interception while one module runs. The only hook that stays on a model.

    ``calls``: which call gets which sites; ``written``: which call writes which axes, along which dimension of its
    output; ``times``: how often a forward pass calls the module; ``inside``: of a choice, how many calls of each kind a
    candidate makes.
    """

    sites: list[Site]
    calls: dict[CallKey, list[int]]
    written: dict[CallKey, list[Written]]
    times: int
    board: Board
    inside: dict[str, Counter[str]]

    def enter(self, module: nn.Module, arguments: Any) -> None:  # noqa: ARG002
        """Forward pre-hook."""
        mode = _Interception(self, self.board.entered[id(self)] % self.times)
        self.board.entered[id(self)] += 1
        self.board.running.append(mode)
        live = module.live if isinstance(module, Choice) else None
        for idle in () if live is None else self.inside.keys() - set(live):
            for each in self.board.running:
                each.seen += self.inside[idle]
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG002
        """Forward hook, called also when the module raised."""
        mode = self.board.running.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self.board.counting:
            self.board.counted.append((self, mode.call, mode.seen))


class Unseen(Interceptor):
    """Of a leaf, whose calls are none of the record's: they are not counted."""

    def enter(self, module: nn.Module, arguments: Any) -> None:  # noqa: ARG002
        """Forward pre-hook."""
        self.board.masking = True

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG002
        """Forward hook, called also when the module raised."""
        self.board.masking = False


class _Interception(TorchFunctionMode):
    """Counts the calls of each kind and gates those that the record names."""

    def __init__(self, interceptor: Interceptor, call: int) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.call = call
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, board = KINDS.get(func), self.interceptor.board
        if kind is None or not board.gating or not counts(kind, args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        key = (self.call, kind, self.seen[kind])
        indices, written = self.interceptor.calls.get(key, ()), self.interceptor.written.get(key, ())
        self.seen[kind] += 1
        args, kwargs = _positional(kind, list(args), dict(kwargs or {})) if indices else (args, kwargs or {})
        for index in indices:
            site, mask, mixes = self.interceptor.sites[index], board.masks[index], board.mixes
            keep = mask() if callable(mask) else mask
            for mix, said in mixes[index] if mixes else ():
                _close(site, args, mix, said() if callable(said) else said)
            if keep is None:
                continue
            if site.how in WEIGHTS:
                WEIGHTS[site.how](args, keep)
                continue
            if site.how not in FILLS:
                for outer in board.running[: board.running.index(self)]:
                    outer.seen[kind] += 1  # they will not see the call, as its masked form takes its place
                board.masking = True  # what it calls itself is none of the record's calls
                result = FORMS[site.how](args, kwargs, site.dim, keep)
                board.masking = False
                return result
            _close(site, args, None, keep)
        acting = [(board.acts[name], dim) for name, dim in written if name in board.acts]
        for act, dim in acting:
            act.look(args[0] if args else kwargs["input"], dim)
        output = func(*args, **kwargs)
        for act, dim in acting:
            output = act(output, dim)
        return output


def _positional(kind: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Operands by position, whether the code gave them by position or by name."""
    for name in OPERANDS.get(kind, ("input",))[len(args) :]:
        args.append(kwargs.pop(name))
    return args, kwargs


def _close(site: Site, args: list[Any], mix: Callable[[Tensor, Tensor], Tensor] | None, keep: Tensor) -> None:
    """Gate one operand of a call, or the weight's columns where the weight is smaller (the result is the same)."""
    operands, first = args, 0
    if isinstance(args[0], str):  # an einsum: its operands follow, or stand in a list
        operands, first = (args, 1) if isinstance(args[1], Tensor) else (list(args[1]), 0)
        args[1] = operands if first == 0 else args[1]
    x = operands[first + site.arg]
    weight = args[1] if site.weight is not None else None
    if weight is not None and mix is None and keep.ndim == 1 and weight.numel() < x.numel():
        inside = keep[: weight.shape[1]] if keep.shape[0] != weight.shape[1] else keep
        args[1] = weight * inside.reshape(1, -1, *(1 for _ in weight.shape[2:]))
        return
    gate = along(keep, x, site.dim)
    if site.how != "mask":
        operands[first + site.arg] = torch.where(gate > 0, x, FILLS[site.how])
    else:
        operands[first + site.arg] = x * gate if mix is None else mix(x, gate)


def intercept(
    model: nn.Module, axes: Axes, sites: list[Site], board: Board, writers: Mapping[str, Sequence[Writer]]
) -> None:
    """Register the hooks that gate ``sites`` of an eager model; masks are read from ``board`` at every call.

    ``writers``: of the axes whose gates act, or look, where they are written.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    runs, calls_of = _runs(axes), _calls(axes)
    inside = _inside(axes, runs, calls_of)
    by_owner: dict[str, dict[CallKey, list[int]]] = {}
    written: dict[str, dict[CallKey, list[Written]]] = {}
    for index, site in enumerate(sites):
        owner, call = _locate(axes, site.node, runs, calls_of)
        by_owner.setdefault(owner, {}).setdefault(call, []).append(index)
    for name, node, dim in writing(axes, writers):
        owner, call = _locate(axes, node, runs, calls_of)
        written.setdefault(owner, {}).setdefault(call, []).append((name, dim))
    for owner in by_owner | written:
        of_owner = by_owner.get(owner, {}), written.get(owner, {})
        hook = Interceptor(sites, *of_owner, len(runs[owner]), board, inside.get(owner, {}))
        modules[owner].register_forward_pre_hook(hook.enter)
        modules[owner].register_forward_hook(hook.leave, always_call=True)
    for path in {leaf.path for leaf in axes.walk.captured.leaves}:
        unseen = Unseen(sites, {}, {}, 1, board, {})
        modules[path].register_forward_pre_hook(unseen.enter)
        modules[path].register_forward_hook(unseen.leave, always_call=True)


def _runs(axes: Axes) -> dict[str, list[str]]:
    """Module path -> its calls in order, by the key that export gives to each call."""
    runs: dict[str, list[str]] = {}
    for node in axes.walk.captured.graph.nodes:
        for key, path in axes.walk.captured.running(node).items():
            if key not in runs.setdefault(path, []):
                runs[path].append(key)
    return runs


def _calls(axes: Axes) -> dict[tuple[str, str], list[Node]]:
    """(call of a module, kind) -> its calls of that kind in order, those of inner modules too."""
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in axes.walk.captured.graph.nodes:
        kind = NODE_KINDS.get(node.target.__name__) if node.op == "call_function" else None
        given = [value.meta.get("val") if isinstance(value, Node) else value for value in node.args]
        if kind is None or not counts(kind, given, node.kwargs):
            continue
        for key in axes.walk.captured.running(node):
            calls.setdefault((key, kind), []).append(node)
    return calls


def calls_of_modules(axes: Axes) -> dict[tuple[str, str], int]:
    """(call of a module, kind) -> how many calls of that kind the graph has there."""
    return {key: len(nodes) for key, nodes in _calls(axes).items()}


def _inside(
    axes: Axes, runs: dict[str, list[str]], calls: dict[tuple[str, str], list[Node]]
) -> dict[str, dict[str, Counter[str]]]:
    """Path of a choice -> candidate -> how many calls of each kind it makes."""
    parts = {f"{path}.candidates": path for path in axes.walk.captured.choices}
    first = {keys[0]: path for path, keys in runs.items() if path.rpartition(".")[0] in parts}
    found: dict[str, dict[str, Counter[str]]] = {path: {} for path in parts.values()}
    for (key, kind), nodes in calls.items():
        if key in first:
            parent, _, name = first[key].rpartition(".")
            found[parts[parent]].setdefault(name, Counter())[kind] = len(nodes)
    return found


def _locate(
    axes: Axes, node: Node, runs: dict[str, list[str]], calls: dict[tuple[str, str], list[Node]]
) -> tuple[str, CallKey]:
    """Where an eager model runs a node: the innermost module, and which call in it."""
    kind = NODE_KINDS.get(node.target.__name__)  # type: ignore[union-attr]
    if kind is None:
        raise TraceError(f"no way to gate {axes.walk.where(node)} in an eager model; freeze its axes")
    key = next(reversed(axes.walk.captured.running(node)))
    owner = axes.walk.captured.owner(node)
    return owner, (runs[owner].index(key), kind, calls[key, kind].index(node))


def release(model: nn.Module) -> list[Board]:
    """Remove our hooks, and only ours; what they read."""
    boards = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Interceptor)]:
                boards.append(hooks.pop(key).__self__.board)  # type: ignore[attr-defined]
                module._forward_hooks_always_called.pop(key, None)
    return boards


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model without our hooks, what wraps it and what computes its weights; its attentions open."""
    model = unwrapped(model)
    result = copy.deepcopy(model, computed_tensors(model))
    release(result)
    bake(result)
    open_up(result)
    return result
