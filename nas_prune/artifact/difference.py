"""Rebuild: a derived model is its origin plus a difference that is plain data.

``difference`` reads it off: operations in the place of modules, and, compared with the origin that has these too,
tensors of another shape and numbers that modules keep about themselves. ``rebuild`` repeats it on a freshly built
origin and refuses whatever does not fit. On the meta device that is a rehearsal: every check is made and nothing is
allocated.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.artifact.swaps import Swaps, swap, swapped
from nas_prune.base.errors import ArtifactError
from nas_prune.base.plain import is_plain
from nas_prune.base.wider import WIDEST, is_wider, mark
from nas_prune.derivation.source.edits import Record, original, recorded, repeat

Shape = tuple[int, ...]
Attributes = dict[str, dict[str, Any]]  # path of a module -> name -> plain value

NOT_RECORDED = frozenset({"training", "pretrained_cfg", "default_cfg", "pretrained_model_args"})
GROWTH, FREE = 1000, 2**28  # an origin may have 1000 times the elements of its artefact, 1 GiB of float32 at no charge


@dataclass(frozen=True)
class Difference:
    """What differs from the origin.

    ``swaps``: operations in the place of modules, which comes first; ``shapes``: of tensors; ``shared``: names of one
    tensor; ``attributes``: new values; ``rewritten``: of classes, the sizes that are -1 or attributes now; ``wider``:
    whether a tensor may be larger than its origin's, since axes were widened before they were pruned.
    """

    swaps: Swaps
    shapes: Mapping[str, Shape]
    shared: Sequence[Sequence[str]]
    attributes: Attributes
    rewritten: Record
    wider: bool = False


def difference(origin: nn.Module, model: nn.Module) -> Difference:
    """What turns ``origin`` into ``model``, whose operations and rewritten classes ``origin`` gets on the way.

    Raises ArtifactError where the difference is more than operations, tensors and plain values.
    """
    swaps = swapped(origin, model)
    _swap(origin, swaps)
    fresh, modules = dict(origin.named_modules()), dict(model.named_modules())
    for path in [*fresh, *modules]:
        _same_kind(path, fresh.get(path), modules.get(path))
    old, new = origin.state_dict(), model.state_dict()
    _same_names(old, new)
    for name, value in new.items():
        _fits(name, value, old[name], wider=is_wider(model))
    shapes = {name: tuple(value.shape) for name, value in new.items() if value.shape != old[name].shape}
    repeat(origin, recorded(model))
    changed = {path: _changed(path, module, modules[path]) for path, module in fresh.items()}
    attributes = {path: values for path, values in changed.items() if values}
    return Difference(swaps, shapes, _shared(model), attributes, recorded(model), is_wider(model))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that ``state_dict`` lists, on the CPU, contiguous, no two of them sharing memory."""
    return {name: _own(value) for name, value in model.state_dict().items()}


def buffers_of(model: nn.Module, origin: nn.Module) -> dict[str, Tensor]:
    """The buffers outside ``state_dict`` that differ from those that the constructor computes."""
    fresh, listed = dict(origin.named_buffers()), model.state_dict()
    found = {name: _own(value) for name, value in model.named_buffers() if name not in listed and name in fresh}
    return {name: value for name, value in found.items() if not identical(value, fresh[name])}


def identical(one: Tensor, other: Tensor) -> bool:
    """Equal in type, shape and every bit (a NaN is equal to itself)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_own(one).reshape(-1).view(torch.uint8), _own(other).reshape(-1).view(torch.uint8))


def rebuild(
    origin: nn.Module, change: Difference, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Turn a freshly built ``origin`` into the derived model, in place."""
    _swap(origin, change.swaps)
    state = origin.state_dict()
    unlisted = {name: value for name, value in origin.named_buffers() if name not in state}
    _same_names(state, tensors)
    _known(buffers, unlisted)
    _check_size({**state, **unlisted}, tensors)
    for name, value in tensors.items():
        _fits(name, value, state[name], wider=change.wider)
    for name, value in buffers.items():
        _same_type(name, value, unlisted[name])
    _check_shapes(change.shapes, tensors, state)
    _check_shared(change.shared, tensors)
    replace(origin, change.shared, {**tensors, **buffers})
    repeat(origin, change.rewritten)
    _set(origin, change.attributes)
    if change.wider:
        mark(origin)


def _swap(origin: nn.Module, swaps: Swaps) -> None:
    """Put the operations in; the weights that they draw do not last, so global random state is left untouched."""
    with torch.random.fork_rng(devices=[]):
        swap(origin, swaps)


def _own(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _same_kind(path: str, fresh: nn.Module | None, module: nn.Module | None) -> None:
    if original(type(fresh)) is not original(type(module)):
        found, expected = (("no module" if m is None else type(m).__name__) for m in (module, fresh))
        raise ArtifactError(
            f"the model has {found} at {path!r} where its origin has {expected}; a timm model can be saved if only its "
            "widths changed, or registered operations took the place of modules. If it was created with other "
            "arguments, pass them as origin="
        )


def _same_names(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ArtifactError(f"the tensors are not those of the origin (missing: {missing[:3]}, unknown: {unknown[:3]})")


def _known(found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in found.keys() - known.keys():
        raise ArtifactError(f"the origin has no buffer {name!r} outside its state_dict")


def _changed(path: str, fresh: nn.Module, module: nn.Module) -> dict[str, Any]:
    """The plain attributes of one module that differ from those of its origin."""
    changed = {}
    for name, old in _plain_attributes(fresh).items():
        new = vars(module).get(name)
        if not is_plain(new) or json.dumps(new) != json.dumps(old):
            if not _same_form(old, new):
                raise ArtifactError(
                    f"{path}.{name} is {_short(new)} where its origin has {_short(old)}; this cannot be recorded"
                )
            changed[name] = new
    return changed


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps about itself; an empty list or dict is a place for what comes at run time, a cache."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in NOT_RECORDED and is_plain(value) and value not in ([], (), {})
    }


def _same_form(old: Any, new: Any) -> bool:
    """Whether ``new`` could stand where ``old`` stands: same type, same length, same keys; lists count as tuples."""
    if isinstance(old, list | tuple):
        return isinstance(new, list | tuple) and len(old) == len(new) and all(map(_same_form, old, new))
    if isinstance(old, dict):
        return isinstance(new, dict) and old.keys() == new.keys() and all(_same_form(old[key], new[key]) for key in old)
    return is_plain(new) and (type(new) is type(old) or (type(old) is float and type(new) is int))


def formed(old: Any, new: Any) -> Any:
    """``new`` with tuples where ``old`` has tuples."""
    if isinstance(old, dict):
        return {key: formed(old[key], new[key]) for key in old}
    if isinstance(old, list):
        return list(map(formed, old, new))
    return tuple(map(formed, old, new)) if isinstance(old, tuple) else new


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!s:.40}"


def _shared(model: nn.Module) -> list[list[str]]:
    """Groups of names under which ``state_dict`` lists one and the same tensor."""
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _fits(name: str, value: Tensor, old: Tensor, *, wider: bool) -> None:
    """A tensor may be smaller than its origin's, of a widened model larger, and of another precision; nothing else."""
    pairs = zip(value.shape, old.shape, strict=False)
    if value.ndim != old.ndim or not all(n == m or 0 < n <= (WIDEST * m if wider else m) for n, m in pairs):
        raise ArtifactError(
            f"the tensor {name!r} has shape {tuple(value.shape)}, its origin {tuple(old.shape)}: larger, or empty"
        )
    _same_type(name, value, old)


def _same_type(name: str, value: Tensor, old: Tensor) -> None:
    """Floating point stays floating point. Buffers outside ``state_dict`` may have grown: some are caches."""
    if value.dtype != old.dtype and not (value.is_floating_point() and old.is_floating_point()):
        raise ArtifactError(f"the tensor {name!r} is of type {value.dtype}, its origin of type {old.dtype}")


def _check_shapes(shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    changed = {name: tuple(value.shape) for name, value in tensors.items() if value.shape != state[name].shape}
    for name in sorted(changed.keys() | shapes.keys()):
        if changed.get(name) != shapes.get(name):
            raise ArtifactError(
                f"the tensor {name!r} has shape {changed.get(name, 'as before')}, the config says {shapes.get(name)}"
            )


def _check_size(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    needed, stored = (sum(value.numel() for value in values.values()) for values in (state, tensors))
    if needed > max(FREE, GROWTH * stored):
        raise ArtifactError(
            f"the origin would need {needed:.1e} numbers for an artefact of {stored:.1e}; that is absurd"
        )


def _check_shared(shared: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
    for names in shared:
        kinds = {(tensors[name].shape, tensors[name].dtype) if name in tensors else None for name in names}
        if len(kinds) != 1 or None in kinds:
            raise ArtifactError(f"the tensors {', '.join(names)[:200]} cannot be one and the same")


def replace(model: nn.Module, shared: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
    """Put a copy of every tensor in its place; those that share a name group share one copy."""
    first = {name: names[0] for names in shared for name in names}
    placed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = module._parameters.get(leaf)
        copy = value.detach().clone()
        fresh = copy if old is None else nn.Parameter(copy, requires_grad=old.requires_grad)
        setattr(module, leaf, placed.setdefault(first.get(name, name), fresh))


def _set(model: nn.Module, attributes: Attributes) -> None:
    modules = dict(model.named_modules())
    for path, name, value in _flat(attributes):
        if path not in modules:
            raise ArtifactError(f"the origin has no module {path!r}")
        known = _plain_attributes(modules[path])
        if name not in known:
            raise ArtifactError(f"the module {path!r} of the origin has no plain attribute {name!r}")
        if not _same_form(known[name], value):
            raise ArtifactError(f"{path}.{name} would be {_short(value)} where the origin has {_short(known[name])}")
        setattr(modules[path], name, formed(known[name], value))


def _flat(attributes: Attributes) -> Iterator[tuple[str, str, Any]]:
    for path, values in attributes.items():
        for name, value in values.items():
            yield path, name, value
