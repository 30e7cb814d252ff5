"""Least squares for the additive predictor: coefficients that are not negative and near a prior.

Errors are relative, so that a small network counts as much as a large one, and a timing that is far off counts less
(Huber). Block pivoting (Portugal, Judice and Vicente, 1994) solves it in a few steps of as many equations as there are
timings, however many columns; should it not settle, ``scipy.optimize.nnls`` does, the prior being further rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

RATE_TIE = 0.03  # of the rates of sorts, of which there are few
OUTLIER = 0.05  # a relative error from which a timing counts less
ROUNDS = 2  # of weighing outliers anew
FLOOR = 1e-3  # least scale of a column, as a share of the dense time: what its sort does not show, it may show itself
ANCHOR = 1e3  # weight of the dense model: timed beside every sample, and what relative targets are shares of
EXACT = 1e-9  # a slope that counts as zero
PIVOTS = 50  # steps of block pivoting; a few are usual
ELSE = 0.05  # least share of the dense time that is not in operators measured alone


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Columns (n f) and milliseconds (n) of networks that were timed, and of the dense one, (f) and a number.

    ``sorts`` (f): the number of the sort of each column; ``measured``: the one whose columns are milliseconds, if any.
    """

    columns: Array
    ms: Array
    dense: Array
    dense_ms: float
    sorts: NDArray[np.int64]
    measured: int | None = None

    @property
    def amounts(self) -> Array:
        """What a column is scaled by (f): the dense network's; the most of any network where the dense one has none."""
        return np.where(self.dense > 0, self.dense, self.columns.max(axis=0))

    def without(self, left_out: NDArray[np.bool_]) -> LeastSquares:
        """The problem with some columns (f) left out: their coefficients are zero."""
        return replace(self, columns=self.columns * ~left_out, dense=self.dense * ~left_out)

    def rows(self, chosen: NDArray[np.bool_]) -> LeastSquares:
        """The problem with some of the networks (n) alone."""
        return replace(self, columns=self.columns[chosen], ms=self.ms[chosen])


def coefficients(problem: LeastSquares, tie: float) -> Array:
    """Milliseconds per unit of each column (f), near the rate of its sort.

    ``tie``: being off by 100 % costs as much as this relative error of one timing.
    """
    expected = rates(problem)[problem.sorts] * problem.amounts
    return _solved(problem, expected, np.maximum(expected, FLOOR * problem.dense_ms), tie)


def rates(problem: LeastSquares) -> Array:
    """Milliseconds per unit of each sort: one coefficient for all of its columns."""
    count = int(problem.sorts.max()) + 1
    member = np.eye(count)[problem.sorts]
    whole = replace(problem, columns=problem.columns @ member, dense=problem.dense @ member)
    expected = np.full(count, problem.dense_ms / count)
    if problem.measured is not None and count > 1:
        alone = max(whole.dense[problem.measured], ELSE * problem.dense_ms)
        expected[:] = max(problem.dense_ms - alone, ELSE * problem.dense_ms) / (count - 1)
        expected[problem.measured] = alone
    return _solved(whole, expected, expected, RATE_TIE)


def _solved(problem: LeastSquares, expected: Array, scale: Array, tie: float) -> Array:
    """Coefficients (f); ``expected`` and ``scale`` (f): milliseconds of a column's amount, give or take."""
    amounts = problem.amounts
    used = amounts > 0
    unit = np.where(used, amounts, 1.0)
    rows = np.vstack([problem.dense, problem.columns]) / unit * used
    ms = np.concatenate([[problem.dense_ms], problem.ms])
    usual = np.concatenate([[ANCHOR], np.ones(len(problem.ms))])
    spread, weights = scale / tie, usual
    for _ in range(1 + ROUNDS):
        found = nonnegative(rows * (weights / ms)[:, None], weights, expected, spread)
        off = np.abs(rows @ found / ms - 1)
        weights = usual * np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(off, 1e-12)))
    result: Array = np.where(used, found / unit, 0.0)
    return result


def nonnegative(left: Array, right: Array, expected: Array, spread: Array) -> Array:
    """x >= 0 (f) of least |left x - right|^2 + |(x - expected) / spread|^2, for ``left`` (n f)."""
    scaled, rest, least = left * spread, right - left @ expected, -expected / spread
    free = np.ones(len(expected), dtype=bool)  # the others are zero
    for _ in range(PIVOTS):
        z = np.where(free, 0.0, least)
        inside = scaled[:, free]
        z[free] = inside.T @ np.linalg.solve(inside @ inside.T + np.eye(len(right)), rest - scaled @ z)
        slope = z - scaled.T @ (rest - scaled @ z)
        wrong = np.where(free, z < least, slope < -EXACT)
        if not wrong.any():
            return np.maximum(expected + spread * z, 0.0)
        free ^= wrong
    prior = np.diag(1 / spread)
    found: Array = nnls(np.vstack([left, prior]), np.concatenate([right, expected / spread]))[0]
    return found
