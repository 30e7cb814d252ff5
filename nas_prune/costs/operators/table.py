"""A table of operators measured on this device: milliseconds over a grid of both widths, bilinear in between.

After HALP (Shen et al., arXiv 2110.10811) and Once-for-All (Cai et al., arXiv 1908.09791), which add up measured
operators. Ours: few points and real widths, so that gradients pass; and a grid that never decreases, as timing noise
would make it do: the mean of the running maximum from below and the running minimum from above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_prune.base.errors import ArtifactError
from nas_prune.base.follow import Follow
from nas_prune.costs.operators.operator import OperatorShape, operators
from nas_prune.costs.operators.timing import Bench, Point, time_point
from nas_prune.tracing import Axes

MOST = 8  # points per width: what the buffers of a predictor have room for
LEAST = 1 / 16  # the smallest width of a grid, as a share of the full one
LOW, STEP = 8, 16  # the least width of a wide grid and the others are multiples: devices compute in whole blocks


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Milliseconds (p q) at widths first (p) and second (q), both ascending."""

    first: Tensor
    second: Tensor
    ms: Tensor


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """One grid per shape, by the key of the shape."""

    grids: Mapping[str, TimeGrid]

    @staticmethod
    def from_points(measured: Iterable[tuple[Point, float]]) -> OperatorTable:
        """The table of points and their milliseconds. Raises ArtifactError where a grid has a hole."""
        shapes: dict[str, dict[tuple[int, int], float]] = {}
        for point, ms in measured:
            shapes.setdefault(point.shape.key, {})[point.first, point.second] = ms
        return OperatorTable({key: _grid(key, points) for key, points in shapes.items()})

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> OperatorTable:
        """What ``tensors`` gave. Raises ArtifactError where a part of a grid is missing."""
        keys = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
        try:
            return OperatorTable({key: TimeGrid(*(tensors[f"{key}/{part}"] for part in PARTS)) for key in keys})
        except KeyError as error:
            raise ArtifactError(f"the operator table lacks {error}; measure it again") from error

    def tensors(self) -> dict[str, Tensor]:
        """All grids as named tensors, for a safetensors file."""
        return {f"{key}/{part}": getattr(grid, part) for key, grid in self.grids.items() for part in PARTS}

    def ms(self, shape: OperatorShape, first: Tensor | float, second: Tensor | float) -> Tensor:
        """Milliseconds (b) of a shape at real widths (b), or a scalar at one; beyond the grid, those at its border.

        Raises ArtifactError for a shape that was not measured.
        """
        if shape.key not in self.grids:
            raise ArtifactError(f"the operator table knows no {shape.key}; measure it for this model")
        grid = self.grids[shape.key]
        one, two = torch.as_tensor(first).to(grid.ms), torch.as_tensor(second).to(grid.ms)
        one, two = one + 0 * two, two + 0 * one  # of one length
        sides = one.reshape(-1, 1), two.reshape(-1, 1)
        return interpolated(grid.ms[None], (grid.first[None], grid.second[None]), sides).reshape(one.shape)


PARTS = ("first", "second", "ms")


def plan(axes: Axes, *, points: int = 5) -> list[Point]:
    """What to measure for the model of these axes: each shape once, over a grid of its widths."""
    shapes = {each.shape.key: each.shape for each in operators(axes)}
    return [
        Point(shape, first, second)
        for shape in shapes.values()
        for first in _widths(shape.full[0], points if shape.movable[0] else 1)
        for second in _widths(shape.full[1], points if shape.movable[1] else 1)
    ]


def measure_table(
    axes: Axes, bench: Bench, *, points: int = 5, progress: Follow[Point] = lambda steps, _: steps
) -> OperatorTable:
    """Measure all operators of a model here."""
    steps = progress(plan(axes, points=points), "timing operators")
    return OperatorTable.from_points((point, time_point(point, bench)) for point in steps)


def interpolated(ms: Tensor, grids: tuple[Tensor, Tensor], widths: tuple[Tensor, Tensor]) -> Tensor:
    """Bilinear milliseconds (b k) of k tables (k p q) with grids (k p), (k q), at widths (b k) each."""
    rows, columns = (_tents(width, grid) for width, grid in zip(widths, grids, strict=True))
    return ((rows[..., None, :] @ ms).squeeze(-2) * columns).sum(-1)


def padded(values: Tensor, length: int) -> Tensor:
    """A grid (p) with further points that no width reaches, as they are multiples of the last."""
    return torch.cat([values, values[-1] * torch.arange(2, length - len(values) + 2)])


def _tents(widths: Tensor, grid: Tensor) -> Tensor:
    """Weights (b k p) of the grid's points (k p) for widths (b k): 1 at a point, falling to 0 at its neighbours."""
    steps = grid.diff(dim=-1).clamp_min(1e-6)
    position = ((widths[..., None] - grid[:, :-1]) / steps).clamp(0, 1)  # how far into each cell, (b k p-1)
    ones = torch.ones_like(widths[..., None])
    return torch.cat([ones, position], -1) - torch.cat([position, 0 * ones], -1)


def _widths(full: int, points: int) -> list[int]:
    """Up to ``points`` different widths from the least to the full one, all of it where there is one."""
    wanted: Sequence[float] = (full * np.linspace(LEAST, 1, points)[:-1]).tolist() if points > 1 else []
    low, step = (LOW, STEP) if full >= 4 * STEP else (1, 1)
    return sorted({_multiple(width, step if index else low) for index, width in enumerate(wanted)} | {full})


def _multiple(width: float, step: int) -> int:
    return max(step, step * round(width / step))


def _grid(key: str, points: Mapping[tuple[int, int], float]) -> TimeGrid:
    first, second = (sorted({widths[side] for widths in points}) for side in (0, 1))
    missing = [(one, two) for one in first for two in second if (one, two) not in points]
    if missing:
        raise ArtifactError(f"{len(missing)} points of {key} were not measured, first {missing[0]}; measure them all")
    if max(len(first), len(second)) > MOST:
        raise ArtifactError(f"{key} was measured at more than {MOST} widths of a side; measure fewer")
    ms = np.array([[points[one, two] for two in second] for one in first])
    return TimeGrid(
        torch.tensor(first).float(), torch.tensor(second).float(), torch.from_numpy(_increasing(ms)).float()
    )


def _increasing(ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest that is easily had to a table that never decreases along either side."""
    up, down = ms, np.flip(ms)
    for side in (0, 1):
        up, down = np.maximum.accumulate(up, side), np.minimum.accumulate(down, side)
    mean: NDArray[np.float64] = (up + np.flip(down)) / 2
    return mean
