"""Files of tensors (safetensors): looked at before they are read, and read by everyone in the same way.

A header says which tensors there are; the library checks that it fits the file, and no more than that is believed.
"""

from collections.abc import Callable, Mapping
from os.path import isfile
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nas_prune.base.errors import NasPruneError, first_line, one_line, shown

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
MOST = 200_000  # tensors in a file

Found = TypeVar("Found")
Error = type[NasPruneError]


def header(path: Path, error: Error) -> dict[str, Tensor]:
    """The tensors of a file without their memory, on the meta device; whatever is wrong raises ``error``."""
    return _opened(path, error, _shapes)


def metadata(path: Path, error: Error) -> dict[str, str]:
    """The free text in the header of a file."""
    return _opened(path, error, lambda file: dict(file.metadata() or {}))


def read(path: Path, error: Error) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; none of them shares memory with the file."""
    header(path, error)
    return _opened(path, error, _tensors)


def content(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> bytes:
    """A file of these tensors, in whatever layout they lie in memory; ``told``: free text for its header."""
    tidy = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(tidy, metadata=dict(told) or None)


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, object]) -> str:
    """What keeps tensors from taking the place of others, in a few words: another name, shape or type, or a number that
    is not finite where there was one; empty where nothing does."""
    different = sorted(map(str, expected.keys() ^ found.keys()))
    if different:
        where = "is missing" if different[0] in expected else "is not one of the model"
        return f"{shown(different[0])} {where}"
    for name, value in found.items():
        known = expected[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return f"{shown(name)} is no tensor"
        if value.shape != known.shape or value.dtype != known.dtype:
            kinds = f"{value.dtype} {tuple(value.shape)}", f"{known.dtype} {tuple(known.shape)}"
            return f"{shown(name)} is {kinds[0]} where the model has {kinds[1]}".replace("torch.", "")
        if not bool(value.isfinite().all()) and (known.is_meta or bool(known.isfinite().all())):
            return f"{shown(name)} holds numbers that are not finite"
    return ""


def _shapes(file: Any) -> dict[str, Tensor]:
    names = list(file.keys())
    if len(names) > MOST:
        raise ValueError(f"it has more than {MOST} tensors")
    slices = {name: file.get_slice(name) for name in names}
    return {
        name: torch.empty(part.get_shape(), dtype=_type(name, part.get_dtype()), device="meta")
        for name, part in slices.items()
    }


def _tensors(file: Any) -> dict[str, Tensor]:
    return {name: file.get_tensor(name).clone() for name in list(file.keys())}


def _type(name: str, kind: str) -> torch.dtype:
    if kind not in TYPES:
        raise ValueError(f"{shown(name)} has numbers of an unknown kind, {kind}")
    return TYPES[kind]


def _opened(path: Path, error: Error, look: Callable[[Any], Found]) -> Found:
    if not isfile(path):
        raise error(f"there is no file {one_line(str(path))}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return look(file)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as cause:
        raise error(f"{path} is not a safetensors file ({first_line(cause)})") from cause
