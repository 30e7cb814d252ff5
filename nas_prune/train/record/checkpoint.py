"""A checkpoint of a training stage: one file that is whole and unchanged, or an error that says so.

The file is a line that names the format, the SHA-256 of what follows, and what ``torch.save`` wrote. Reading checks
the sum before anything is unpickled, and unpickles nothing but tensors and plain data (``weights_only``).
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas_prune.base.errors import CheckpointError, first_line
from nas_prune.base.files.whole import atomic_write


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain data, nested), whole or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    if foreign:
        raise CheckpointError(
            f"the checkpoint {path} would hold {', '.join(foreign)}, which cannot be read back safely; "
            "save tensors, numbers, strings, lists and dicts only"
        )
    payload = buffer.getvalue()
    atomic_write(path, sealed(payload))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``save`` wrote, with every tensor on the CPU."""
    payload = _checked_payload(Path(path))
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle of tensors breaks in every way that there is
        raise CheckpointError(f"the checkpoint {path} cannot be read ({first_line(error)}); {_advice()}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"the checkpoint {path} holds a {type(state).__name__}, not a state; {_advice()}")
    return state


def sealed(payload: bytes) -> bytes:
    """The file that holds a payload: the name of the format, the sum, and the payload."""
    return _header(payload) + payload


def _header(payload: bytes) -> bytes:
    return b"nas_prune checkpoint 3\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _checked_payload(path: Path) -> bytes:
    """Everything after the header, once header and sum are right."""
    try:
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {first_line(error)}") from error
    size = len(_header(b""))
    header, payload = content[:size], content[size:]
    if header.partition(b"\n")[0] != _header(b"").partition(b"\n")[0]:
        raise CheckpointError(f"{path} is not a nas_prune checkpoint; {_advice()}")
    if header != _header(payload):
        raise CheckpointError(f"the checkpoint {path} is corrupt (its SHA-256 does not match); {_advice()}")
    return payload


def _advice() -> str:
    return "delete that file to start the stage again"
