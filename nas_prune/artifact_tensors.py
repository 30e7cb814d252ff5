"""The tensors of an artefact: safetensors files, written whole, and looked at before they are read."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nas_prune.errors import ArtifactError
from nas_prune.files import atomic_write

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors; no tensors are no file."""
    if tensors:
        atomic_write(path, safetensors.torch.save(dict(tensors), metadata={"format": "pt"}))


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file without their memory, on the meta device; no file is no tensors."""
    if not path.exists():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {
                name: torch.empty(part.get_shape(), dtype=TYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
    except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path.name} is not a safetensors file of a model ({error})") from error


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU."""
    return safetensors.torch.load_file(path) if path.exists() else {}
