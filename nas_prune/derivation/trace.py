"""Trace a model, and keep to the axes that its own code can express.

The captured graph can be sliced along every axis; the code that it was captured from may still hold a shape that no
attribute tells. So a smaller model is tried, on tensors without numbers (no memory, no arithmetic). Where it stops, the
axes that meet at that very line are frozen, with the line as the reason, and it is tried again.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from torch import nn
from torch.fx import Node

from nas_prune.base.axis import BITS
from nas_prune.base.errors import DeriveError
from nas_prune.derivation.computed_scales import differing, scales
from nas_prune.derivation.derive import shrink
from nas_prune.derivation.gateable import counting, unreached
from nas_prune.derivation.integers import ambiguous
from nas_prune.derivation.source.sizes import computed_sizes, frame_of
from nas_prune.derivation.training_only import asking, in_training
from nas_prune.derivation.trial_runs import (
    Copied,
    Copy,
    Trial,
    counted,
    cut_elsewhere,
    tried,
    with_numbers,
    without_numbers,
)
from nas_prune.methods.intercept import plain_copy
from nas_prune.tracing import Axes, Inputs, capture, find, walk
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.axes import Scale
from nas_prune.tracing.graph.brought import parametrized, unwrapped
from nas_prune.tracing.graph.capture import Captured
from nas_prune.tracing.graph.leaves import asked_for
from nas_prune.tracing.graph.multihead import has_attention
from nas_prune.tracing.graph.staying import staying
from nas_prune.tracing.terms import leaves
from nas_prune.tracing.walk import Site, Tie, touched

Dense = Callable[[Copied], Trial]  # the trial of the dense model, made once
TRIES = 64  # places that a model may stop at
FEW = 8  # axes that meet at a line, of which each is tried


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    freeze: Mapping[tuple[str, int], str] | None = None,
    stripes: bool = False,
    leaves: Sequence[str] = (),
) -> Axes:
    """Every width of ``model`` that can shrink: axes by name, with the record that gates and derives them.

    ``example_inputs``: what ``forward`` takes, one tensor or a tuple, e.g. (b 3 h w); only shapes matter.
    ``freeze``: dimensions of parameters that must not change, ``{("fc.weight", 1): "my reason"}``.
    ``stripes``: whether the stripes of convolutions are axes, too. ``leaves``: paths of modules to leave as they are;
    what no graph can say is one anyway, if the rest can be captured without it.
    Raises TraceError when the model cannot be captured.
    """
    model = unwrapped(model)
    if parametrized(model) or has_attention(model):
        model = plain_copy(model)
    whole = staying(model, freeze or {})
    captured = counted(model, capture(model, example_inputs, leaves=asked_for(model, leaves)))
    ties, stops, stay = set[Tie](), dict[str, str](), dict[str, str]()
    asks = asking(model, captured)
    trained = in_training(model, example_inputs, asks)
    dense = cache(partial(_trial, model, captured))
    for _ in range(TRIES):
        solved = walk(captured, freeze_tensors=whole, freeze_nodes=stops, ties=ties, trained=trained)
        axes = _frozen(find(solved, striped=stripes), stay)
        stop = _stops(model, axes, dense) if axes.free else Stop()
        if not stop.found:
            break
        if stop.ties <= ties:
            stops |= stop.nodes
        ties |= stop.ties
        stay |= stop.axes
    axes = replace(axes, scales=stop.scales)
    return _deeply(model, axes if trained else _trainable(model, axes, asks), dense)


def _trial(model: nn.Module, captured: Captured, copied: Copied) -> Trial:
    small, mode = copied(model)
    return tried(small, mode, captured)


def _trainable(model: nn.Module, axes: Axes, asks: list[nn.Module]) -> Axes:
    """The axes, those frozen without which parts that run in training only, and in no graph, would not run."""
    training = [path for path, module in model.named_modules() if module in asks]
    for copied in (without_numbers, with_numbers) if asks and axes.free else ():
        if tried(*copied(model), axes.walk.captured, training).raised is None:
            arch = _some(axes, alike=False)
            needed = _raising(axes, arch, partial(copied, model), training)
            why = "read by a part that runs in training only"
            return _frozen(axes, dict.fromkeys(needed, why))
    return axes


def _frozen(axes: Axes, reasons: Mapping[str, str]) -> Axes:
    """The axes, those of these names frozen."""
    known = {name: replace(axes[name], frozen=why) for name, why in reasons.items() if name in axes}
    return replace(axes, named={**axes.named, **known})


def _deeply(model: nn.Module, axes: Axes, dense: Dense) -> Axes:
    """The axes, those branches frozen that the model's code cannot do without."""
    depth = [name for name, axis in axes.free.items() if axis.kind == "depth"]
    if not depth or _does_without(model, axes, depth, dense):
        return axes
    needed = [name for name in depth if not _does_without(model, axes, [name], dense)]
    if not _does_without(model, axes, [name for name in depth if name not in needed], dense):
        needed = depth
    return _frozen(axes, dict.fromkeys(needed, f"the code of {type(model).__name__} cannot do without it"))


def _does_without(model: nn.Module, axes: Axes, names: list[str], dense: Dense) -> bool:
    """Whether a copy of the model runs without these branches, on tensors without numbers if the dense model does."""
    copied = without_numbers if dense(without_numbers).raised is None else with_numbers
    small, mode = copied(model)
    shrink(small, axes, Arch(dict.fromkeys(names, ())))
    return tried(small, mode, axes.walk.captured).raised is None


@dataclass(frozen=True)
class Stop:
    """Where a smaller model stopped, or did something else than the graph, and what may help.

    ``ties``, the first choice: where a module knows by one number what has become two.
    ``nodes``: nodes of the graph -> the reason to freeze what goes into them. ``axes``: the same by name.
    ``scales``: numbers that are not the dense ones, and can be made up for.
    """

    ties: set[Tie] = field(default_factory=set)
    nodes: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    scales: tuple[Scale, ...] = ()

    @property
    def found(self) -> bool:
        """Whether anything has to be tied or frozen."""
        return bool(self.ties or self.nodes or self.axes)


def _stops(model: nn.Module, axes: Axes, dense: Dense) -> Stop:
    """What two smaller models stop at, or do otherwise: widths of one size differ in the first, not in the second."""
    first = _stop(model, axes, _some(axes, alike=False), dense)
    if first.found:
        return first
    second = _stop(model, axes, _some(axes, alike=True), dense)
    known = {scale.index for scale in first.scales}
    scales = (*first.scales, *(scale for scale in second.scales if scale.index not in known))
    return second if second.found else Stop(scales=scales)


def _stop(model: nn.Module, axes: Axes, arch: Arch, of_dense: Dense) -> Stop:
    """What a smaller model stops at, or does otherwise; nothing, if nothing can be learnt about it."""
    for copied in (without_numbers, with_numbers):  # code that looks at values runs on real numbers only
        small, mode = copied(model)
        try:
            shrink(small, axes, arch)
        except DeriveError as error:
            return Stop(nodes={str(error.node): str(error)})
        with counting(small, axes) as board:
            trial = tried(small, mode, axes.walk.captured)
        dense = of_dense(copied)
        if trial.raised is None:
            beyond = _ungated(axes, unreached(model, axes, copied, board))
            beyond = beyond or _cut(cut_elsewhere(axes, arch, dense, trial))
            return beyond or _renumbered(model, axes, arch, copied, (dense, trial))
        if dense.raised is None:  # as it is, it runs
            running, nodes, line = _place(small, axes, trial.raised)
            ties = {tie for tie in ambiguous(small, axes, arch) if tie[0] in running}
            ties |= computed_sizes(model, axes, nodes)
            why = f"the code of {line or type(model).__name__} cannot express it"
            meeting = _meeting(axes, nodes)
            if ties or len(meeting) > FEW:
                return Stop(ties, {node.name: why for node in nodes})
            suspects = meeting or list(arch.kept)  # what is cut elsewhere may set a number that this line asks for
            some = Arch({name: arch.kept[name] for name in suspects})
            raising = _raising(axes, some, partial(copied, model)) or suspects
            return Stop(axes=dict.fromkeys(raising, why))
    return Stop()


def _meeting(axes: Axes, nodes: list[Node]) -> list[str]:
    """The free axes of what goes into these nodes."""
    terms = [term for node in nodes for term in touched(axes.walk, node)]
    found = {axes.variables.get(var) for term in terms for var in leaves(term)}
    return [name for name in axes.free if name in found]


def _raising(axes: Axes, arch: Arch, copied: Callable[[], Copy], training: Sequence[str] = ()) -> list[str]:
    """The axes whose cut makes the code raise, in training at these paths, found by halves."""

    def raises(names: list[str]) -> bool:
        small, mode = copied()
        shrink(small, axes, Arch({name: arch.kept[name] for name in names}))
        return tried(small, mode, axes.walk.captured, training).raised is not None

    return _culprits(list(arch.kept), raises)


def _ungated(axes: Axes, sites: list[Site]) -> Stop | None:
    """What to freeze where no gate could act."""
    nodes, stay = dict[str, str](), dict[str, str]()
    for site in sites:
        why = f"no gate reaches {axes.walk.where(site.node)} in eager code"
        bits = [axes.variables[var] for var in leaves(site.term) if axes[axes.variables[var]].kind in BITS]
        stay |= dict.fromkeys(bits, why)
        nodes |= {} if bits else {site.node.name: why}
    return Stop(nodes=nodes, axes=stay) if sites else None


def _cut(nodes: list[Node]) -> Stop | None:
    """What to freeze where code cuts at a number."""
    reasons = dict[str, str]()
    for node in nodes:
        kind = str(next(reversed(node.meta["nn_module_stack"].values()))[1]).rpartition(".")[2]
        file, line = frame_of(node) or ("", 0)
        reasons[node.name] = f"the code of {kind} ({Path(file).name}:{line}) cuts it where it always did"
    return Stop(nodes=reasons) if reasons else None


def _renumbered(model: nn.Module, axes: Axes, arch: Arch, copied: Copied, trials: tuple[Trial, Trial]) -> Stop:
    """Numbers that the smaller model computes from its widths; the axes that change them, if they cannot be kept."""
    dense, numbers = (trial.numbers for trial in trials)
    changed = differing(dense, numbers)
    kept = scales(axes, dense, changed)
    if len(kept) == len(changed):
        return Stop(scales=tuple(kept.values()))

    def changes(names: list[str]) -> bool:
        small, mode = copied(model)
        shrink(small, axes, Arch({name: arch.kept[name] for name in names}))
        return bool(set(differing(dense, tried(small, mode, axes.walk.captured).numbers)) - kept.keys())

    why = f"the code of {type(model).__name__} computes a number from it"
    return Stop(axes=dict.fromkeys(_culprits(list(arch.kept), changes), why))


def _culprits(names: list[str], changes: Callable[[list[str]], bool]) -> list[str]:
    """The names with which something changes, found by halves."""
    if not changes(names):
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return [*_culprits(names[:half], changes), *_culprits(names[half:], changes)] or names


def _some(axes: Axes, *, alike: bool) -> Arch:
    """An architecture in which every axis is cut: those of one size to one size, or to another one each in turn."""
    kept = {}
    before = Counter[int]()
    for name, axis in axes.free.items():
        if axis.kind == "stripe":
            continue
        sizes = [size for size in range(1, axis.size) if 0.3 <= size / axis.size <= 0.8] or [max(1, axis.size - 1)]
        kept[name] = range(sizes[0 if alike else (1 + before[axis.size]) * len(sizes) * 5 // 8 % len(sizes)])
        before[axis.size] += 1
    return Arch(kept)


def _place(small: nn.Module, axes: Axes, error: Exception) -> tuple[set[str], list[Node], str]:
    """Where a model raised: the modules that ran, the nodes of the innermost line that touches an axis, and that line.

    Modules of the same class run the same line, so all of them are meant; but torch's own classes are not to blame.
    """
    running, nodes, where = set[str](), list[Node](), ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        module, file = frame.f_locals.get((*code.co_varnames, "")[0]), code.co_filename
        if isinstance(module, nn.Module):
            kind = type(module) if not type(module).__module__.startswith("torch.nn") else None
            if kind is not None and not where:
                where = f"{kind.__name__} ({Path(file).name}:{line})"
            alike = {path for path, known in small.named_modules() if known is module or type(known) is kind}
            running |= alike
            if not nodes:
                nodes = _nodes(axes, alike, (file, line))
    return running, nodes, where


def _nodes(axes: Axes, modules: set[str], place: tuple[str, int]) -> list[Node]:
    """Nodes that these modules made at a line, as far as they touch an axis."""
    captured = axes.walk.captured
    made = [node for node in captured.graph.nodes if captured.owner(node) in modules and frame_of(node) == place]
    return [node for node in made if touched(axes.walk, node)]
