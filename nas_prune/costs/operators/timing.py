"""One operator alone: a small module of given widths, timed in the runtime that will run the network.

Alone, its weights and images stay in the cache, which they do not inside a network; a predictor learns that factor.
What else runs on the machine only adds, so the time of a point is the lower quartile of its calls.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.costs.operators.operator import OperatorShape
from nas_prune.costs.timing.conditions import USUAL, Conditions
from nas_prune.costs.timing.runtimes import prepare, threads
from nas_prune.costs.timing.turn import turn

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CALLS = 8  # at least so many


@dataclass(frozen=True)
class Point:
    """A shape at two widths: one measurement."""

    shape: OperatorShape
    first: int
    second: int

    @property
    def key(self) -> str:
        """The point as text, for journals."""
        return f"{self.shape.key} at {self.first}-{self.second}"


@dataclass(frozen=True)
class Bench:
    """Under what operators are timed: conditions, images per call, seconds per point, device."""

    conditions: Conditions = USUAL
    batch: int = 1
    seconds: float = 0.03
    device: str = "cpu"


class Attention(nn.Module):
    """Scaled dot-product attention, and a parameter that tells where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (b h n d), k (b h s d), v (b h s d) -> (b h n d)."""
        return F.scaled_dot_product_attention(q, k, v)


def module(point: Point, batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The operator alone, and what it takes for ``batch`` images of the network."""
    shape, images = point.shape, batch * point.shape.images
    if shape.kind == "linear":
        layer = nn.Linear(point.first, point.second, shape.bias)
        return layer, (torch.randn(images, *shape.space, point.first),)
    if shape.kind == "attention":
        queries, keys = shape.space
        sizes = (queries, keys, keys)
        return Attention(), tuple(torch.randn(images, point.first, size, point.second) for size in sizes)
    groups, inputs, outputs = _channels(point)
    convolution = CONVOLUTIONS[len(shape.space)](
        inputs, outputs, shape.kernel, shape.stride, shape.padding, shape.dilation, groups, bias=shape.bias
    )
    return convolution, (torch.randn(images, inputs, *shape.space),)


def _channels(point: Point) -> tuple[int, int, int]:
    """Groups, inputs and outputs of a convolution; the channels into a group shrink as those out of it do."""
    if not point.shape.grouped:
        return 1, point.first, point.second
    inside = max(1, round(point.shape.inputs * point.second / point.shape.full[1]))
    return point.first, point.first * inside, point.first * point.second


def time_point(point: Point, bench: Bench) -> float:
    """Milliseconds of one call. Raises as ``runtimes.prepare`` does, e.g. for a runtime that is missing."""
    alone, inputs = module(point, bench.batch)
    call = prepare(alone.to(bench.device), tuple(x.to(bench.device) for x in inputs), bench.conditions)
    times: list[float] = []
    with threads(bench.conditions.threads), turn():
        call()
        end = time.perf_counter() + bench.seconds
        while len(times) < CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return float(np.percentile(times, 25))
