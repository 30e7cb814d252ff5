"""The staircase: the number of channels in which a device computes, found from sweeps of single operators.

Kernels work in blocks of channels, so 65 channels may take as long as 72, or more; a search should only choose widths
that fill whole blocks. HALP (Shen et al., arXiv 2110.10811) and NetAdapt (Yang et al., arXiv 1804.03230) do so. Ours is
the test: a line, against the same line with stairs of d channels, for d = 2, 4 ... 64.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, inf

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import f as f_distribution

from nas_prune.costs.operators.operator import OperatorShape, operators
from nas_prune.costs.operators.timing import Point
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Cat, Term, Var, leaves, resolve

STEPS = (2, 4, 8, 16, 32, 64)
RISK = 5e-3  # that noise on a straight line passes for stairs, all steps together
NARROW = 64  # channels
SHARE = 0.25  # of the slope that must be in the stairs: smaller ones are not worth a constraint


def steps(widths: Sequence[int], ms: Sequence[float]) -> int:
    """Width of the stairs in a sweep of one operator, or 1 for a straight line (and for fewer than six widths).

    Errors are taken as relative. The stairs must fit better than the line by an F-test.
    """
    if len(widths) < 6:
        return 1
    width, time = np.asarray(widths, dtype=float), np.asarray(ms, dtype=float)
    line, _ = _fit(width, time, None)
    left = {step: _fit(width, time, step) for step in STEPS}
    tall = {step: rest for step, (rest, share) in left.items() if share >= SHARE}
    if not tall:
        return 1
    best = min(tall, key=lambda step: tall[step])
    freedom = len(widths) - 3
    gain = (line - tall[best]) / max(tall[best] / freedom, 1e-30)
    return best if float(f_distribution.sf(gain, 1, freedom)) < RISK / len(STEPS) else 1


def sweep(shape: OperatorShape, *, most: int = 48) -> list[Point]:
    """Points over what an operator writes, from a quarter of its width upwards: a stair is large beside that.

    Narrow operators are swept by single channels; wide ones by 0, 1, 4 and 5 channels above every multiple of eight,
    since one channel too many is what shows a stair.
    """
    side = _written(shape)
    if not shape.movable[side]:
        return []
    full = shape.full[side]
    every = range(max(1, full // 4), full + 1)
    widths = every if full <= NARROW else [width for width in every if width % 8 in (0, 1, 4, 5)]
    pairs = ((width, shape.full[1]) if side == 0 else (shape.full[0], width) for width in widths[:most])
    return [Point(shape, *pair) for pair in pairs]


def sweeps(axes: Axes) -> list[Point]:
    """The points of all sweeps of a model, each shape once."""
    shapes = {each.shape.key: each.shape for each in operators(axes)}
    return [point for shape in shapes.values() for point in sweep(shape)]


def measured_divisors(axes: Axes, measured: Iterable[tuple[Point, float]]) -> dict[str, int]:
    """Divisor of every free axis: the widest stairs of the operators that write it; 1 where nothing was swept.

    ``measured``: the points of ``sweeps`` with their milliseconds. Steps are powers of two, so the widest serves all.
    """
    found = _steps_by_shape(measured)
    divisors = dict.fromkeys(axes.free, 1)
    for each in operators(axes):
        step = found.get(each.shape.key, 1)
        for term in (each.first, each.second)[_written(each.shape)]:
            for name, divisor in _divisors(axes, term, step).items():
                if name in divisors:
                    divisors[name] = max(divisors[name], min(divisor, axes[name].size))
    return divisors


def _written(shape: OperatorShape) -> int:
    """Which of the two widths an operator writes: of a grouped convolution the groups, where they can change."""
    return 0 if shape.movable[0] and (shape.grouped or shape.kind == "attention") else 1


def _steps_by_shape(measured: Iterable[tuple[Point, float]]) -> dict[str, int]:
    times: dict[str, dict[int, float]] = {}
    for point, ms in measured:
        times.setdefault(point.shape.key, {})[(point.first, point.second)[_written(point.shape)]] = ms
    return {key: steps(list(swept), list(swept.values())) for key, swept in times.items()}


def _divisors(axes: Axes, term: Term, step: int) -> Mapping[str, int]:
    """What each axis of a term must be a multiple of, for the term to be a multiple of the step."""
    term = resolve(term)
    if isinstance(term, Var):
        return {axes.variables[term]: step} if term in axes.variables else {}
    if isinstance(term, Cat):
        return {name: each for part in term.parts for name, each in _divisors(axes, part, step).items()}
    factors = {var: term.size // var.size for var in leaves(term)}
    return {axes.variables[var]: step // gcd(step, other) for var, other in factors.items() if var in axes.variables}


def _fit(width: NDArray[np.float64], time: NDArray[np.float64], step: int | None) -> tuple[float, float]:
    """Squares left over by a line with stairs, and the share of its slope that the stairs are; nothing may fall."""
    columns = [np.ones_like(width), width]
    if step is not None:
        columns.append(np.ceil(width / step) * step)
    if step is not None and np.array_equal(columns[1], columns[2]):
        return inf, 0.0  # the sweep is too coarse to tell
    found, left = nnls(np.stack(columns, -1) / time[:, None], np.ones_like(time))
    slope = float(found[1:].sum())
    return float(left) ** 2, float(found[2]) / slope if step is not None and slope > 0 else 0.0
