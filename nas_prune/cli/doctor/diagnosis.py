"""Doctor: what of a model can shrink, what cannot and why, and what there is to gain, measured on this machine.

Facts only; ``cli_doctor`` prints them. The gain is that of the smallest architecture of a search space, which is really
derived and timed in turn with the dense model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from nas_prune.base.axis import Axis
from nas_prune.base.errors import DeriveError, SpaceError, TraceError, UnknownNameError
from nas_prune.base.fingerprint import fingerprint
from nas_prune.base.folding import fold, pattern, together
from nas_prune.base.registry import hint
from nas_prune.cli.doctor.subject import Subject
from nas_prune.costs import Conditions, Count, Macs, Params, Runtime, Timing, count, measure_together
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import traced
from nas_prune.run.calibration.sampling import smallest
from nas_prune.tracing.space import SearchSpace, read_file

SHOWN = 3  # tensors of an axis that a group names


@dataclass(frozen=True)
class Group:
    """Axes that differ only in the number of their block: ``name`` is ``blocks.{0-11}.mlp.fc1`` for all ``names``.

    ``sizes``: which sizes each may take; ``members``: least and largest number of tensor dimensions that one runs
    through; ``tensors``: the first of them.
    """

    name: str
    names: tuple[str, ...]
    kind: str
    size: int
    sizes: str
    members: tuple[int, int]
    tensors: tuple[str, ...]
    frozen: str | None


@dataclass(frozen=True)
class Cost:
    """What one model costs: MACs of one image and parameters, and its timing by runtime (none if it cannot run)."""

    counted: Count
    timings: Mapping[str, Timing]


@dataclass(frozen=True)
class Diagnosis:
    """Everything found out about a model; ``failure`` says why its smallest architecture could not be derived."""

    subject: Subject
    space: SearchSpace
    dense: Cost
    smallest: Cost
    failure: str | None
    threads: int
    device: Mapping[str, str]


def lay(subject: Subject) -> SearchSpace:
    """The search space over the traced axes; TraceError or SpaceError, with the reasons, if nothing can shrink."""
    file = read_file(subject.space)
    axes = traced(subject.model, subject.images, file.replace, stripes=file.stripes)
    if not axes.free:
        counted = {reason: len(names) for reason, names in frozen(axes.values()).items()}
        reasons = "; ".join(f"{reason} ({n} ax{'is' if n == 1 else 'es'})" for reason, n in counted.items())
        raise TraceError(f"nothing of {subject.name} can be pruned: {reasons or 'it has no axis of two units or more'}")
    try:
        space = SearchSpace.read(subject.space, axes)
    except SpaceError as error:
        raise SpaceError(f"{error}. Without it, these could change: {_counted(axes.free.values())}") from error
    if all(space.minimum[name] >= axis.size for name, axis in space.free.items()):
        raise SpaceError(
            f"nothing of {subject.name} can be pruned: the least size that search space {subject.space} allows is the "
            f"full one for every axis ({_counted(space.free.values())}); lower its `minimum` or `divisor`"
        )
    return space


def examine(subject: Subject, space: SearchSpace, *, runtimes: Sequence[str], seconds: float = 1.0) -> Diagnosis:
    """Count and time the dense model and the smallest one of the space, in turn, for about ``seconds`` each."""
    images, failure = subject.images, None
    models = {"dense": subject.model}
    arch = smallest(space)
    try:
        models["smallest"] = derive(subject.model, space.axes, arch)
    except DeriveError as error:
        failure = str(error)
    timings: dict[str, dict[str, Timing]] = {"dense": {}, "smallest": {}}
    for runtime in _known(runtimes):
        for name, timing in measure_together(models, images, conditions=Conditions(runtime), seconds=seconds).items():
            timings[name][runtime] = timing
    counted = {name: count(model, images) for name, model in models.items()}
    sizes = arch.sizes(space.free)
    predicted = Count(*(round(float(cost(space.axes)(sizes))) for cost in (Macs, Params)))
    return Diagnosis(
        subject,
        space,
        dense=Cost(counted["dense"], timings["dense"]),
        smallest=Cost(counted.get("smallest", predicted), timings["smallest"]),
        failure=failure,
        threads=torch.get_num_threads(),
        device=fingerprint(),
    )


def groups(space: SearchSpace) -> list[Group]:
    """All axes, like ones of like blocks folded into one."""
    alike: dict[tuple[object, ...], list[Axis]] = {}
    for axis in space.axes.values():
        least, reason = space.minimum.get(axis.name), pattern(axis.frozen or "")
        key = (pattern(axis.name), axis.kind, axis.size, axis.divisor, least, reason)
        alike.setdefault(key, []).append(axis)
    found = []
    for axes in alike.values():
        named = {axis.name: axis for axis in axes}
        found += [_group(name, [named[each] for each in names], space) for name, names in fold(list(named)).items()]
    return found


def frozen(axes: Iterable[Axis]) -> dict[str, list[str]]:
    """Reason -> the axes that are frozen for it; reasons that differ in the number of a block are one."""
    names: dict[str, list[str]] = {}
    for axis in axes:
        if axis.frozen is not None:
            names.setdefault(axis.frozen, []).append(axis.name)
    folded = fold(list(names))
    return {reason: [name for each in reasons for name in names[each]] for reason, reasons in folded.items()}


def kinds(space: SearchSpace) -> dict[str, dict[str, int]]:
    """Kind -> how many axes may change, how many are frozen, and how many units they have together."""
    found: dict[str, dict[str, int]] = {}
    for axis in space.axes.values():
        row = found.setdefault(axis.kind, {"free": 0, "frozen": 0, "units": 0})
        row["free" if axis.frozen is None else "frozen"] += 1
        row["units"] += axis.size
    return found


def sizes_of(axis: Axis, least: int | None) -> str:
    """The sizes that an axis may take, such as ``8..64 step 8``; ``least`` is None where it is frozen."""
    full, step = axis.size, axis.divisor
    if least is None or least >= full:
        return str(full)
    last = full - full % step
    regular = str(least) if last == least else f"{least}..{last}" + (f" step {step}" if step > 1 else "")
    return regular if last == full else f"{regular}, {full}"


def one(space: SearchSpace, name: str) -> dict[str, Any]:
    """One axis in full, as plain data."""
    if name not in space.axes:
        raise UnknownNameError(f"the model has no axis {name!r}{hint(name, dict(space.axes))}")
    axis, least = space.axes[name], space.minimum.get(name)
    return {**asdict(axis), "minimum": least, "sizes": sizes_of(axis, least)}


def plain(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain data for JSON."""
    subject, space = found.subject, found.space
    reasons = frozen(space.axes.values())
    return {
        "model": subject.name,
        "image": list(subject.image),
        "space": space.name,
        "note": subject.note,
        "axes": [one(space, name) for name in space.axes],
        "groups": [asdict(group) for group in groups(space)],
        "kinds": kinds(space),
        "frozen": [{"reason": reason, "count": len(names), "axes": names} for reason, names in reasons.items()],
        "dense": _figures(found.dense),
        "smallest": {**_figures(found.smallest), "failure": found.failure},
        "batch": 1,
        "threads": found.threads,
        "device": dict(found.device),
    }


def _figures(cost: Cost) -> dict[str, Any]:
    return {**asdict(cost.counted), "ms": {runtime: asdict(timing) for runtime, timing in cost.timings.items()}}


def _known(runtimes: Sequence[str]) -> list[Runtime]:
    """The runtimes of these names, each once."""
    known: dict[str, Runtime] = {name: name for name in get_args(Runtime)}
    for name in runtimes:
        if name not in known:
            raise UnknownNameError(f"cannot measure in {name!r}{hint(name, known)}")
    return [known[name] for name in dict.fromkeys(runtimes)]


def _counted(axes: Iterable[Axis]) -> str:
    """``4 channel axes, 2 hidden axes``."""
    return ", ".join(f"{number} {kind} axes" for kind, number in Counter(axis.kind for axis in axes).items())


def _group(name: str, axes: Sequence[Axis], space: SearchSpace) -> Group:
    first, counts = axes[0], [len(axis.members) for axis in axes]
    shown = range(min(SHOWN, *counts))
    tensors = tuple(together([axis.members[number].tensor for axis in axes]) for number in shown)
    sizes = sizes_of(first, space.minimum.get(first.name))
    names, reason = tuple(axis.name for axis in axes), together([axis.frozen or "" for axis in axes]) or None
    return Group(name, names, first.kind, first.size, sizes, (min(counts), max(counts)), tensors, reason)
