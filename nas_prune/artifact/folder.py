"""An artefact: a derived model as a folder of safetensors and JSON, whole or absent, checked before it is believed.

``model.safetensors`` holds the tensors of ``state_dict``; ``config.json`` names the timm model that it came from and
what differs; ``buffers.safetensors`` (buffers outside ``state_dict``) and ``arch.json`` are there when needed. There is
no pickle, and nothing of the search is needed to load.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn

from nas_prune.artifact import config as artifact_config
from nas_prune.artifact import tensors as artifact_tensors
from nas_prune.artifact.bounds import Work, bounded
from nas_prune.artifact.config import AGAIN, ARCH, BUFFERS, FILES, WEIGHTS, Config, Rewritten
from nas_prune.artifact.difference import Difference, buffers_of, difference, identical, rebuild, tensors_of
from nas_prune.artifact.origin import Origin
from nas_prune.base.errors import ArtifactError, one_line
from nas_prune.base.files.folders import whole_folder
from nas_prune.base.fingerprint import versions
from nas_prune.base.plain import is_plain
from nas_prune.derivation.source.edits import recorded
from nas_prune.tracing.arch import Arch

# a timm model registers up to 3 parts per tensor, one of which most blocks or candidates are gone many more
LEAST_PARTS, PARTS_PER_TENSOR = 3000, 50

Remarks = Mapping[Literal["certificate", "provenance"], Mapping[str, Any]]


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    origin: tuple[str, Mapping[str, Any]] | None = None,
    arch: Arch | None = None,
    remarks: Remarks | None = None,
) -> None:
    """Write a model derived from a timm model; an artefact that is there already is replaced, whole or not at all.

    ``origin``: name and arguments that ``timm.create_model`` was called with, where the model does not say it itself.
    ``remarks``: plain data that is kept beside the model, its ``certificate`` and its ``provenance``.
    Raises ArtifactError if loading would not give back the same model; nothing is written then.

    >>> npr.save(small, "derived", arch=arch, remarks={"provenance": {"note": "no training"}})
    >>> npr.Arch.read("derived/arch.json") == arch
    True
    """
    target = Path(folder).resolve()
    _check_replaceable(target)
    source = Origin.of(model, *(origin or (None, None)))
    fresh = source.build()
    config = _config(model, source, difference(fresh, model), remarks or {})
    try:
        with whole_folder(target) as temporary:
            artifact_tensors.write(temporary / WEIGHTS, tensors_of(model))
            artifact_tensors.write(temporary / BUFFERS, buffers_of(model, fresh))
            if arch is not None:
                arch.write(temporary / ARCH)
            artifact_config.write(temporary, config)
            _prove(temporary, model)
    except OSError as error:
        raise ArtifactError(f"cannot write the artefact {target}: {error.strerror or error}") from error


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The saved model, on the CPU and in eval mode; its outputs are bit-equal to those of the model that was saved.

    Raises ArtifactError, before anything is allocated, if the folder is incomplete, damaged or tampered with.

    >>> npr.load("derived").fc.in_features == len(arch.kept["layer4.0.conv2"])
    True
    """
    path = Path(folder)
    config = checked(path)
    with _advising(path):
        model = config.origin.build()
        rebuild(model, config.difference, artifact_tensors.read(path / WEIGHTS), artifact_tensors.read(path / BUFFERS))
    return model


def checked(path: Path) -> Config:
    """The config of an artefact that can be loaded: the rehearsal on the meta device has made every check."""
    config = artifact_config.read(path)
    with _advising(path):
        weights, buffers = (artifact_tensors.header(path / name) for name in (WEIGHTS, BUFFERS))
        with bounded(Work(parts=LEAST_PARTS + PARTS_PER_TENSOR * len(weights))):
            rebuild(config.origin.build("meta"), config.difference, weights, buffers)
    return config


@contextmanager
def _advising(path: Path) -> Iterator[None]:
    """Say which artefact it is that cannot be loaded, and what to do."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(
            f"the artefact {path} cannot be loaded: {one_line(str(error), 500)}. To repair it, {AGAIN}"
        ) from error


def intact(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an artefact whose every file is as it was saved."""
    try:
        artifact_config.read(Path(folder))
    except ArtifactError:
        return False
    return True


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of ``config.json``, after it and the files that it lists were checked."""
    return artifact_config.read(Path(folder)).model_dump()


def _check_replaceable(target: Path) -> None:
    """An existing folder is replaced only if all that is in it came from ``save``."""
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; an artefact is a folder, choose another name")
    foreign = sorted({path.name for path in target.iterdir()} - set(FILES)) if target.exists() else []
    if foreign:
        raise ArtifactError(
            f"{target} also holds {', '.join(foreign)[:200]}, which replacing it would delete; choose another folder"
        )


def _plain(what: str, remark: Mapping[str, Any] | None) -> dict[str, Any] | None:
    plain = None if remark is None else dict(remark)
    if not is_plain(plain):
        raise ArtifactError(
            f"the {what} must be plain data (finite numbers, text, lists, dicts), not {str(plain)[:80]}"
        )
    return plain


def _config(model: nn.Module, origin: Origin, change: Difference, remarks: Remarks) -> Config:
    features = getattr(model, "num_features", None)
    return Config(
        backbone=origin.architecture,
        num_classes=origin.arguments.get("num_classes"),
        num_features=features if type(features) is int else None,
        model_args=dict(origin.arguments),
        pretrained_cfg=dict(origin.pretrained_cfg),
        swaps={path: dict(record) for path, record in change.swaps.items()},
        shapes={name: list(shape) for name, shape in change.shapes.items()},
        shared=[list(names) for names in change.shared],
        attributes=change.attributes,
        rewritten={kind: {m: Rewritten(**r) for m, r in found.items()} for kind, found in change.rewritten.items()},
        wider=change.wider,
        certificate=_plain("certificate", remarks.get("certificate")),
        provenance=_plain("provenance", remarks.get("provenance")),
        versions=versions("nas_prune", "torch", "timm", "safetensors"),
    )


def _prove(folder: Path, model: nn.Module) -> None:
    """Load what was written and compare it with the model, tensor by tensor and attribute by attribute."""
    loaded = load(folder)
    left = difference(loaded, model)
    expected = {**model.state_dict(), **dict(model.named_buffers())}
    found = {**loaded.state_dict(), **dict(loaded.named_buffers())}
    changed = [name for name, value in expected.items() if name not in found or not identical(value, found[name])]
    if recorded(loaded) != recorded(model):
        changed.append("a rewritten class")
    if left.swaps or left.attributes or changed:
        names = ", ".join([*left.swaps, *changed, *left.attributes])
        raise ArtifactError(f"the model could not be read back as it is; this differs: {names[:300]}")
