"""Swaps: which operations of ours stand where a timm model has modules of its own, as plain data.

``{path: {"operation": name, **config}}``, each operation as it was built: what pruning changed in it afterwards is told
as for any other module. An operation inside another one comes after it, and takes the place of what that one built.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import ArtifactError, UnknownNameError, first_line, shown
from nas_prune.base.plain import LARGEST, is_moderate, is_plain
from nas_prune.derivation.source.edits import original
from nas_prune.ops import Operation, name_of, operations

Swaps = Mapping[str, Mapping[str, Any]]  # path of a module -> {"operation": name, **keyword arguments}


def swapped(origin: nn.Module, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The operations of ``model`` that ``origin`` does not have there, or has as another one.

    Raises ArtifactError for an operation that plain data cannot build again.
    """
    found: dict[str, dict[str, Any]] = {}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        _collect("", origin, model, found)
    return found


def swap(model: nn.Module, swaps: Swaps) -> None:
    """Put newly built operations in these places of ``model``, with the device, precision and mode of what was there.

    Raises ArtifactError for a place that the model lacks, an unknown operation, and arguments that do not build it.
    """
    for path in sorted(swaps):
        owner, _, name = path.rpartition(".")
        old = _module(model, path)
        like = next((p for p in (*old.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0))
        with torch.device(like.device):
            fresh = _built(path, swaps[path])
        setattr(model.get_submodule(owner), name, fresh.to(like.device, like.dtype).train(old.training))


def _collect(path: str, old: nn.Module, new: nn.Module, found: dict[str, dict[str, Any]]) -> None:
    """Enter what was swapped at ``path`` and below."""
    if isinstance(new, Operation) and not _alike(old, new):
        found[path] = _record(path, new)
        old = _built(path, found[path])
    for name, child in new._modules.items():
        before = old._modules.get(name)
        if child is not None and before is not None:
            _collect(f"{path}.{name}" if path else name, before, child, found)


def _alike(old: nn.Module, new: Operation) -> bool:
    """Whether both are the same operation, built with the same arguments; lists count as tuples."""
    same = isinstance(old, Operation) and original(type(old)) is original(type(new))
    return same and json.dumps(old.config, default=repr) == json.dumps(new.config, default=repr)


def _record(path: str, operation: Operation) -> dict[str, Any]:
    kind = original(type(operation))
    name = name_of(kind)
    if name is None:
        raise ArtifactError(
            f"the {kind.__name__} at {path!r} is not a registered operation, so that no file could name it; "
            "register it with operations.register"
        )
    return {"operation": name, **operation.config}


def _built(path: str, record: Mapping[str, Any]) -> Operation:
    """A new operation from its record."""
    name, config = str(record.get("operation")), {key: value for key, value in record.items() if key != "operation"}
    if not is_plain(config) or not is_moderate(config):
        raise ArtifactError(
            f"the arguments of the operation {shown(name)} at {shown(path)} must be plain data with numbers up to "
            f"{LARGEST}, not {shown(config, 200)}"
        )
    try:
        return operations[name](**config)
    except UnknownNameError as error:
        raise ArtifactError(
            f"at {path!r}: {error}; import the file that registers it first, if it is one of your own"
        ) from error
    except Exception as error:  # a constructor may raise anything when its arguments do not fit
        raise ArtifactError(
            f"the operation {shown(name)} at {shown(path)} cannot be built with {shown(config, 200)}: "
            f"{first_line(error)}"
        ) from error


def _module(model: nn.Module, path: str) -> nn.Module:
    """The module at ``path``, which must be a part of the model."""
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in known:
        near = get_close_matches(path, known, n=1)
        advice = f"did you mean {near[0]!r}?" if path and near else "paths are those of named_modules()"
        raise ArtifactError(
            f"{type(model).__name__} has no module {shown(path)} that an operation could replace; {advice}"
        )
    return known[path]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that ``state_dict`` lists."""
    state: dict[str, Tensor] = module.state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
