"""The tensors of an artefact: safetensors files, written whole, and looked at before they are read."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nas_prune.base.errors import ArtifactError
from nas_prune.base.files import tensors as tensor_file
from nas_prune.base.files.whole import atomic_write


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors; no tensors are no file."""
    if tensors:
        atomic_write(path, tensor_file.content(tensors, {"format": "pt"}))


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file without their memory, on the meta device; no file is no tensors."""
    return tensor_file.header(path, ArtifactError) if path.exists() else {}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU."""
    return tensor_file.read(path, ArtifactError) if path.exists() else {}
