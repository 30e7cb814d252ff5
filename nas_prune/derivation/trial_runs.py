"""Runs of a dense or a smaller model on trial: what it raises, which numbers it computes with, where it cuts.

A trial runs on tensors without numbers: no memory, no arithmetic. Code that looks at values needs real ones.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from nas_prune.derivation.computed_scales import GivenNumbers, Numbers
from nas_prune.derivation.derive import run_once
from nas_prune.methods.intercept import plain_copy, release
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import computed_tensors
from nas_prune.tracing.graph.capture import Captured
from nas_prune.tracing.walk import operator

Copy = tuple[nn.Module, AbstractContextManager[Any]]
Copied = Callable[[nn.Module], Copy]
Cut = tuple[int, int, int]  # a dimension, its size, and what a slice leaves of it


@dataclass(frozen=True)
class Trial:
    """One run: what it raised, if anything, the numbers that its arithmetic was given, and its slices, in order."""

    raised: Exception | None
    numbers: list[GivenNumbers] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


def tried(
    model: nn.Module, mode: AbstractContextManager[Any], captured: Captured, training: Iterable[str] = ()
) -> Trial:
    """A run on zeros, in a mode; modules at the paths ``training`` in training."""
    numbers, cuts = Numbers(), _Cuts()
    try:
        with mode, _silent(), numbers, cuts:
            run_once(model, captured, training)
    except Exception as error:  # whatever the model's own code raises
        return Trial(error, numbers.found, cuts.found)
    return Trial(None, numbers.found, cuts.found)


def counted(model: nn.Module, captured: Captured) -> Captured:
    """The graph, with whether the code says how many images there are, as where it runs on two and not on one."""
    several = replace(captured, counted=True)
    for copied in (without_numbers, with_numbers):
        for each in (captured, several):
            if tried(*copied(model), each).raised is None:
                return each
    return captured


def without_numbers(model: nn.Module) -> Copy:
    """A copy without our hooks whose tensors have shapes only, and the mode to run it in."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {id(tensor): mode.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, computed_tensors(model) | fake)
    release(copied)
    return copied, mode


def with_numbers(model: nn.Module) -> Copy:
    """A copy without our hooks that has real tensors, and no mode to run it in."""
    return plain_copy(model), nullcontext()


def cut_elsewhere(axes: Axes, arch: Arch, dense: Trial, small: Trial) -> list[Node]:
    """The slices of the graph that a smaller model makes at other places than it should; ``x[:, :16]`` never raises.

    An empty list where the slices of the dense model cannot be told to be those of the graph.
    """
    nodes = [node for node in axes.walk.captured.graph.nodes if node.op == "call_function" and _cuts(node)]
    calls = [index for index, cut in enumerate(dense.cuts) if cut[0] and cut[1] != cut[2]][: len(nodes)]
    known = [(_of(axes, node, None), dense.cuts[index]) for node, index in zip(nodes, calls, strict=False)]
    if len(calls) < len(nodes) or len(dense.cuts) != len(small.cuts) or any(one != other for one, other in known):
        return []
    return [node for node, call in zip(nodes, calls, strict=True) if _of(axes, node, arch) != small.cuts[call]]


class _Cuts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the slices that are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Cut] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.slice.Tensor:
            dim = (args[1] if len(args) > 1 else 0) % args[0].ndim
            self.found.append((dim, args[0].shape[dim], result.shape[dim]))
        return result


def _cuts(node: Node) -> bool:
    """Whether a node of the graph cuts a dimension that is not the batch."""
    if operator(node) != "slice.Tensor":
        return False
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    return bool(before != after and before[0] == after[0])


def _of(axes: Axes, node: Node, arch: Arch | None) -> Cut:
    """What a slice of the graph does, in the dense model or a smaller one."""
    before, after = axes.walk.of(node.all_input_nodes[0]), axes.walk.of(node)
    dim = next(i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one.size != other.size)
    sizes = (term.size if arch is None else axes.size_of(term, arch) for term in (before[dim], after[dim]))
    return (dim, *sizes)  # type: ignore[return-value]


@contextmanager
def _silent() -> Iterator[None]:
    """Errors of the trial are expected: torch need not log them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
