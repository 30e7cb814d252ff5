"""Bounds on the work that a file may ask for: a model is built from it only as far as these allow.

Numbers can be harmless one by one and absurd together: 20,000 blocks do not end, whatever device they are built on. So
what counts is what happens: every module, parameter and buffer that is put in its place is counted by hooks of torch.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from nas_prune.base.errors import ArtifactError


@dataclass(frozen=True)
class Work:
    """At most so many parts (modules, parameters, buffers) that are registered, numbers in them, and seconds."""

    parts: int = 200_000
    numbers: float = math.inf
    seconds: float = 120.0


@contextmanager
def bounded(work: Work) -> Iterator[None]:
    """In the block, and in this thread, building modules beyond the bounds raises ArtifactError."""
    owner, end = get_ident(), time.monotonic() + work.seconds
    parts, numbers = 0, 0

    def count(_module: nn.Module, name: str, part: Any) -> None:
        nonlocal parts, numbers
        if get_ident() != owner:
            return
        parts += 1
        numbers += part.numel() if isinstance(part, Tensor) else 0
        if parts > work.parts or numbers > work.numbers or time.monotonic() > end:
            raise ArtifactError(
                f"building the model takes more than {work.parts} parts, {work.numbers:.0e} numbers or "
                f"{work.seconds:.0f} s (at {name!r}), which no such model needs"
            )

    handles = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
