"""The IDX format of MNIST and its relatives: magic number, shape, bytes (http://yann.lecun.com/exdb/mnist/)."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from nas_prune.base.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The array of unsigned bytes in an idx or idx.gz file; DataError names the file and what is wrong with it."""
    content = _bytes(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path} is truncated: {len(content)} bytes, its header alone has {header}; fetch it again")
    zero, kind, found = struct.unpack(">HBB", content[:4])
    if (zero, kind, found) != (0, _UNSIGNED_BYTE, dimensions):
        expected = f"0x{_UNSIGNED_BYTE << 8 | dimensions:08x}"
        raise DataError(
            f"{path} is no idx file of {dimensions} dimensions: magic number 0x{content[:4].hex()}, not {expected}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - header} values, its shape {shape} needs {math.prod(shape)}; fetch it again"
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise DataError(f"{path} is not a whole gzip file ({cause}); fetch it again") from cause
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror or cause}") from cause
