"""Conditions: under what a latency is measured. A timing is true of these, and of nothing else."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Runtime = Literal["eager", "compile", "onnxruntime", "openvino", "tensorrt"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Conditions:
    """What runs the model, on how many CPU threads (None: as many as torch uses now), in which numbers and layout.

    ``channels_last``: images and weights of (b c h w) are kept in memory as (b h w c).
    """

    runtime: Runtime = "eager"
    threads: int | None = None
    precision: Precision = "float32"
    channels_last: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; ``Conditions(**...)`` reads it."""
        return asdict(self)

    def __str__(self) -> str:
        """``onnxruntime, 2 threads``: for messages and reports; what is usual is left out."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        precision = self.precision if self.precision != "float32" else ""
        return ", ".join(filter(None, [self.runtime, threads, precision, "channels last" * self.channels_last]))


USUAL = Conditions()
