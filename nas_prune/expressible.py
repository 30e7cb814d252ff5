"""Trace a model, and keep to the axes that its own code can express.

The captured graph can be sliced along every axis; the code that it was captured from may still hold a shape that no
attribute tells. So a smaller model is tried, on tensors without numbers (no memory, no arithmetic). Where it stops, the
axes that meet at that very line are frozen, with the line as the reason, and it is tried again.
"""

import copy
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node

from nas_prune.arch import Arch
from nas_prune.derivation import run_once, shrink
from nas_prune.errors import DeriveError, TraceError
from nas_prune.intercept import plain_copy, release
from nas_prune.repair import ambiguous
from nas_prune.sources import computed_sizes, frame_of
from nas_prune.tracing import Axes, Inputs, capture, find, walk
from nas_prune.tracing.brought import computed_tensors, unwrapped
from nas_prune.tracing.walk import Tie, touched

TRIES = 64  # places that a model may stop at


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    freeze: Mapping[tuple[str, int], str] | None = None,
    stripes: bool = False,
) -> Axes:
    """Every width of ``model`` that can shrink: axes by name, with the record that gates and derives them.

    ``example_inputs``: what ``forward`` takes, one tensor or a tuple, e.g. (b 3 h w); only shapes matter.
    ``freeze``: dimensions of parameters that must not change, ``{("fc.weight", 1): "my reason"}``.
    ``stripes``: whether the stripes of convolutions are axes, too.
    Raises TraceError when the model cannot be captured.
    """
    model = unwrapped(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for tensor, dim in freeze or {}:
        if tensor not in parameters or not 0 <= dim < parameters[tensor].ndim:
            raise TraceError(f"cannot freeze dimension {dim} of {tensor!r}: the model has no such parameter dimension")
    captured, ties, stops = capture(model, example_inputs), set[Tie](), dict[str, str]()
    for _ in range(TRIES):
        axes = find(walk(captured, freeze_tensors=freeze, freeze_nodes=stops, ties=ties), striped=stripes)
        stop = _stop(model, axes) if axes.free else None
        if stop is None:
            break
        if stop.ties <= ties:
            stops |= stop.nodes
        ties |= stop.ties
    return _deeply(model, axes)


def _deeply(model: nn.Module, axes: Axes) -> Axes:
    """The axes, those branches frozen that the model's code cannot do without."""
    depth = [name for name, axis in axes.free.items() if axis.kind == "depth"]
    if not depth or _does_without(model, axes, depth):
        return axes
    needed = [name for name in depth if not _does_without(model, axes, [name])]
    if not _does_without(model, axes, [name for name in depth if name not in needed]):
        needed = depth
    why = f"the code of {type(model).__name__} cannot do without it"
    return replace(axes, named={**axes.named, **{name: replace(axes[name], frozen=why) for name in needed}})


def _does_without(model: nn.Module, axes: Axes, names: list[str]) -> bool:
    """Whether a copy of the model runs without these branches, on tensors without numbers or else on real ones."""
    return any(_runs(copied(model), axes, names) for copied in (_without_numbers, _with_numbers))


def _runs(copied: tuple[nn.Module, AbstractContextManager[Any]], axes: Axes, names: list[str]) -> bool:
    small, mode = copied
    shrink(small, axes, Arch(dict.fromkeys(names, ())))
    return _raised(small, mode, axes) is None


@dataclass(frozen=True)
class Stop:
    """Where a smaller model stopped, and what may help.

    ``ties``, the first choice: where a module knows by one number what has become two.
    ``nodes``: nodes of the graph -> the reason to freeze what goes into them.
    """

    ties: set[Tie]
    nodes: dict[str, str]


def _stop(model: nn.Module, axes: Axes) -> Stop | None:
    """Where the smaller model stops; None if it runs, or if nothing can be learnt about it."""
    arch = _some(axes)
    for copied in (_without_numbers, _with_numbers):  # code that looks at values runs on real numbers only
        small, mode = copied(model)
        try:
            shrink(small, axes, arch)
        except DeriveError as error:
            return Stop(set(), {str(error.node): str(error)})
        raised = _raised(small, mode, axes)
        if raised is None:
            return None
        if _raised(*copied(model), axes) is None:  # as it is, it runs
            running, nodes, line = _place(small, axes, raised)
            ties = {tie for tie in ambiguous(small, axes, arch) if tie[0] in running}
            ties |= computed_sizes(model, axes, nodes)
            why = f"the code of {line} cannot express it"
            return Stop(ties, {node.name: why for node in nodes}) if ties or nodes else None
    return None


def _raised(model: nn.Module, mode: AbstractContextManager[Any], axes: Axes) -> Exception | None:
    """What a model raises, if anything."""
    try:
        with mode, _silent():
            run_once(model, axes)
    except Exception as error:  # whatever the model's own code raises
        return error
    return None


def _without_numbers(model: nn.Module) -> tuple[nn.Module, AbstractContextManager[Any]]:
    """A copy without our hooks whose tensors have shapes only, and the mode to run it in."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {id(tensor): mode.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, computed_tensors(model) | fake)
    release(copied)
    return copied, mode


def _with_numbers(model: nn.Module) -> tuple[nn.Module, AbstractContextManager[Any]]:
    return plain_copy(model), nullcontext()


def _some(axes: Axes) -> Arch:
    """An architecture in which every axis is cut, by shares that differ from axis to axis."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for name, axis in axes.free.items():
        if axis.kind == "stripe":
            continue
        share = 0.3 + 0.5 * float(torch.rand((), generator=generator))
        kept[name] = range(max(1, min(axis.size - 1, round(share * axis.size))))
    return Arch(kept)


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


def _place(small: nn.Module, axes: Axes, error: Exception) -> tuple[set[str], list[Node], str]:
    """Where a model raised: the modules that ran, the nodes of the innermost line that touches an axis, and that line.

    Modules of the same class run the same line, so all of them are meant; but torch's own classes are not to blame.
    """
    running, nodes, where = set[str](), list[Node](), ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, file = frame.f_locals.get("self"), frame.f_code.co_filename
        if isinstance(module, nn.Module):
            kind = type(module) if not type(module).__module__.startswith("torch.nn") else None
            alike = {path for path, known in small.named_modules() if known is module or type(known) is kind}
            running |= alike
            if not nodes:
                nodes, where = _nodes(axes, alike, (file, line)), f"{type(module).__name__} ({Path(file).name}:{line})"
    return running, nodes, where


def _nodes(axes: Axes, modules: set[str], place: tuple[str, int]) -> list[Node]:
    """Nodes that these modules made at a line, as far as they touch an axis."""
    captured = axes.walk.captured
    made = [node for node in captured.graph.nodes if captured.owner(node) in modules and frame_of(node) == place]
    return [node for node in made if touched(axes.walk, node)]
