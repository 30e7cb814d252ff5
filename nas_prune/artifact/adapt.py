"""Adapt: the difference that makes a derived model, applied to a backbone that was built with other arguments.

Another classifier, other input channels, no head at all: every number is merged from three. What pruning changed is
taken from the derived model, what the arguments changed from the backbone at hand; what both changed is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional

from nas_prune.artifact.difference import Difference, formed, replace
from nas_prune.artifact.swaps import Swaps, shapes, swap
from nas_prune.base.errors import ArtifactError
from nas_prune.derivation.source.edits import part_of, repeat

Dtypes = Mapping[str, torch.dtype]


def adapt(
    model: nn.Module, origin: nn.Module, change: Difference, buffers: Mapping[str, Tensor], dtypes: Dtypes
) -> None:
    """Make ``model`` the derived one, in place; its weights stay what they are, cut to size and of ``dtypes``.

    ``origin``: the backbone as it was when the difference was taken, on the meta device; it gets the operations too.
    ``buffers``: those that are stored, because a constructor would not compute them.
    """
    _swap(model, origin, change.swaps)
    state, known = model.state_dict(), origin.state_dict()
    unknown = sorted(state.keys() - known.keys())
    if unknown and getattr(origin, "num_classes", None) != 0:
        raise ArtifactError(
            f"the arguments add {', '.join(unknown[:3])}, which the artefact does not have; {_advice()}"
        )
    tensors = {name: _cut(name, value, known, change) for name, value in state.items()}
    typed = {name: value.to(dtypes.get(name, value.dtype)) for name, value in tensors.items()}
    shared = [[name for name in names if name in state] for names in change.shared]
    replace(model, shared, {**typed, **_stored(model, origin, buffers)})
    repeat(origin, change.rewritten)
    repeat(model, part_of(change.rewritten, model))
    _set(model, origin, change)
    if unknown:  # a new head on an artefact that has none
        model.reset_classifier(model.num_classes)  # type: ignore[operator]


def true_channels(model: nn.Module) -> None:
    """Where timm made a model of features, of a class of its own, write down the channels that come out."""
    info = getattr(model, "feature_info", None)
    if not isinstance(info, FeatureInfo):
        return
    training = model.training
    with torch.no_grad():
        features = model.eval()(_images(model))
    model.train(training)
    for index, feature in zip(info.out_indices, features, strict=True):
        info.info[index]["num_chs"] = feature.shape[1]


def merged(old: Any, new: Any, now: Any) -> Any:
    """``new`` where it differs from ``old``, otherwise ``now``; item by item. Raises ValueError if both differ."""
    if new == old:
        return now
    if now == old:
        return new
    if isinstance(old, dict) and isinstance(now, dict) and old.keys() == new.keys() == now.keys():
        return {key: merged(old[key], new[key], now[key]) for key in old}
    if isinstance(old, list | tuple) and isinstance(now, list | tuple) and len(old) == len(new) == len(now):
        return type(now)(map(merged, old, new, now))
    raise ValueError(f"{old} was pruned to {new}, the arguments make it {now}")


def _images(model: nn.Module) -> Tensor:
    """One small image (1 c 64 64) of nothing."""
    first = next(value for value in model.parameters() if value.ndim == 4)
    return torch.zeros(1, first.shape[1], 64, 64, dtype=first.dtype, device=first.device)


def _swap(model: nn.Module, origin: nn.Module, swaps: Swaps) -> None:
    """Put the operations into both; a model of features may lack the place. They cannot be built in another size."""
    for path in sorted(swaps):
        here, there = (dict(each.named_modules(remove_duplicate=False)).get(path) for each in (model, origin))
        swap(origin, {path: swaps[path]})
        if here is None or there is None:
            continue
        if shapes(here) != shapes(there) and shapes(origin.get_submodule(path)):
            raise ArtifactError(f"{path}: the arguments make another size of what an operation replaced; {_advice()}")
        swap(model, {path: swaps[path]})


def _cut(name: str, value: Tensor, known: Mapping[str, Tensor], change: Difference) -> Tensor:
    """The first units of every dimension that was pruned; of one that was widened, and then more."""
    if name not in change.shapes:
        return value
    sizes = _merged(name, tuple(known[name].shape), change.shapes[name], tuple(value.shape))
    more = [max(0, size - known) for size, known in zip(sizes, value.shape, strict=True)]
    padded = functional.pad(value, [each for size in reversed(more) for each in (0, size)]) if any(more) else value
    return padded[tuple(slice(size) for size in sizes)]


def _stored(model: nn.Module, origin: nn.Module, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored buffers that the model has too."""
    here, known = dict(model.named_buffers()), dict(origin.named_buffers())
    for name in buffers.keys() & here.keys():
        if here[name].shape != known[name].shape:
            raise ArtifactError(f"the buffer {name!r} was pruned and cannot be computed anew; {_advice()}")
    return {name: value.to(here[name].device) for name, value in buffers.items() if name in here}


def _set(model: nn.Module, origin: nn.Module, change: Difference) -> None:
    """The plain values that modules keep about themselves, where the model has the module that the origin has."""
    modules, known = dict(model.named_modules()), dict(origin.named_modules())
    for path, values in change.attributes.items():
        module = modules.get(path)
        if type(module) is not type(known[path]):
            continue  # no such head, or timm's own class for features
        for name, value in values.items():
            old = getattr(known[path], name)
            setattr(module, name, _merged(f"{path}.{name}", old, formed(old, value), getattr(module, name)))


def _merged(what: str, old: Any, new: Any, now: Any) -> Any:
    try:
        return merged(old, new, now)
    except ValueError as error:
        raise ArtifactError(f"{what}: {error}; {_advice()}") from error


def _advice() -> str:
    return "leave out the argument of timm.create_model that changes it"
