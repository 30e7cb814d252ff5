"""Least squares for the additive predictor: coefficients that are not negative and near a prior.

Errors are relative, so that a small network counts as much as a large one, and a timing that is far off counts less
(Huber). ``scipy.optimize.nnls`` (Lawson and Hanson, 1974) solves it, the prior being further rows of the problem.
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
ANCHOR = 3.0  # weight of the dense model, which is timed beside every sample
ELSE = 0.05  # least share of the dense time that is not in operators measured alone


@dataclass(frozen=True, eq=False)
class Problem:
    """Columns (n f) and milliseconds (n) of networks that were timed, and of the dense one, (f) and a number.

    ``sorts`` (f): the number of the sort of each column; ``measured``: the one whose columns are milliseconds, if any.
    """

    columns: Array
    ms: Array
    dense: Array
    dense_ms: float
    sorts: NDArray[np.int64]
    measured: int | None = None

    def without(self, left_out: NDArray[np.bool_]) -> Problem:
        """The same with some columns (f) left out: their coefficients are zero."""
        return replace(self, columns=self.columns * ~left_out, dense=self.dense * ~left_out)

    def rows(self, chosen: NDArray[np.bool_]) -> Problem:
        """The same with some of the networks."""
        return replace(self, columns=self.columns[chosen], ms=self.ms[chosen])


def coefficients(problem: Problem, tie: float) -> Array:
    """Milliseconds per unit of each column (f), near the rate of its sort.

    ``tie``: being off by 100 % costs as much as this relative error of one timing.
    """
    expected = rates(problem)[problem.sorts] * problem.dense
    return _solved(problem, expected, np.maximum(expected, FLOOR * problem.dense_ms), tie)


def rates(problem: Problem) -> Array:
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


def _solved(problem: Problem, expected: Array, scale: Array, tie: float) -> Array:
    """Coefficients (f); ``expected`` and ``scale`` (f): what a column takes of the dense time, give or take."""
    used = problem.dense > 0
    unit = np.where(used, problem.dense, 1.0)
    rows = np.vstack([problem.dense, problem.columns]) / unit * used
    ms = np.concatenate([[problem.dense_ms], problem.ms])
    usual = np.concatenate([[ANCHOR], np.ones(len(problem.ms))])
    prior, weights = np.diag(tie / scale), usual
    for _ in range(1 + ROUNDS):
        left = np.vstack([rows * (weights / ms)[:, None], prior])
        found = nnls(left, np.concatenate([weights, tie * expected / scale]))[0]
        off = np.abs(rows @ found / ms - 1)
        weights = usual * np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(off, 1e-12)))
    result: Array = np.where(used, found / unit, 0.0)
    return result
