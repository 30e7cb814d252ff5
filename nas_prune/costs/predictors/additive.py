"""The additive predictor: a network takes as long as its operators do, each by a factor that is learned from timings.

nn-Meter (Zhang et al., MobiSys 2021) and HALP (Shen et al., arXiv 2110.10811) add up measured operators. A sum of
operators timed alone is wrong by a factor that depends on the operator: caches, fusion, memory. Ours:

    ms = constant + sum over columns of coefficient * column,    coefficients >= 0,

fitted to whole networks that were timed. A coefficient is drawn towards one rate for all columns of its sort (a table
is right up to one factor, a multiply-add costs the same in each dense convolution), as far as the timings let it.
Where there is no table the columns are multiply-adds and memory traffic, polynomials in the sizes. Weights count as a
whole, too, and by how much they exceed what a cache may hold. In every case the sum never decreases in a size. On top
comes a correction of at most 15 %, linear in the shares. How near the rates, whether with the table, and whether with
the correction: whatever predicts timings best that it was not fitted to.

So is the block: a device that computes 16 channels at a time takes as long for 17 as for 32, and then sizes count as
rounded up to whole blocks (ResNet-18 in ONNX Runtime: 2.4 % off instead of 6.2 %). Gradients pass as if they were not.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nas_prune.base.errors import CalibrationError
from nas_prune.costs.operators.features import MEASURED, Features
from nas_prune.costs.operators.table import OperatorTable
from nas_prune.costs.predictors.additive_fit import Array, LeastSquares, coefficients
from nas_prune.costs.predictors.predictor import Predictor, dense_sizes, left_out, predictors
from nas_prune.tracing import Axes

BOUND = 0.15  # of the correction, on the logarithm
FOLDS = 4  # inner cross-validation: how near the priors, and whether the correction helps
BLOCK_TIE = 0.1  # while the block is chosen
TIES = (0.01, 0.03, 0.1, 0.3)  # how near: from hardly to strongly
RIDGES = (1.0, 10.0, 100.0)  # of the correction
CLEARLY = 0.85  # blocks must lower the mean error to this share
GAIN = 0.97  # the correction stays if it lowers the mean error to this share
IDLE = 1e-4  # least share of the dense time
BLOCKS = (8.0, 16.0, 32.0)  # channels that a device may compute at a time
BLOCKED = ("channel", "hidden")  # kinds of axes that it does so with


class AdditivePredictor(Predictor):
    """Predicted milliseconds as a sum over the work of the graph.

    A table is copied into the state: a predictor that was fitted with one is restored without it.
    """

    coefficients: Tensor
    correction: Tensor
    block: Tensor
    sizes: Tensor

    def __init__(self, axes: Axes, dense_ms: float, table: OperatorTable | None = None) -> None:
        super().__init__(dense_sizes(axes), dense_ms, closed=left_out(axes))
        self.features = Features(axes, self.names, table)
        constant = [0.0] * len(self.features.groups) + [float(dense_ms)]
        self.register_buffer("coefficients", torch.tensor(constant))
        self.register_buffer("correction", torch.zeros(len(self.names) + 2))
        self.register_buffer("block", torch.ones(()))
        # an axis that is not computed in blocks is one of size 0 here
        sizes = [axis.size if axis.kind in BLOCKED else 0 for axis in axes.free.values()]
        self.register_buffer("sizes", torch.tensor(sizes).float(), persistent=False)

    def predict(self, shares: Tensor) -> Tensor:
        """Milliseconds (b) for shares (b n)."""
        ms = torch.maximum(self._columns(shares) @ self.coefficients, IDLE * self.dense_ms)
        return ms * (BOUND * torch.tanh(self._bends(shares) @ self.correction / BOUND)).exp()

    def fit(self, shares: Tensor, ms: Tensor, *, generator: torch.Generator) -> None:
        """Learn from shares (b n) and measured milliseconds (b). Raises CalibrationError for fewer than eight."""
        if len(ms) < 2 * FOLDS:
            raise CalibrationError(f"{len(ms)} timed networks are too few for a predictor; time at least {2 * FOLDS}")
        folds = torch.randperm(len(ms), generator=generator).numpy() % FOLDS
        self._choose_block(shares, ms, folds)
        tries = [(problem, tie) for problem in self._problems(shares, ms) for tie in TIES]
        held_out = [_held_out(problem, tie, folds) for problem, tie in tries]
        measured = ms.double().cpu().numpy()
        chosen = int(np.argmin([_off(each, measured) for each in held_out]))
        self.coefficients.copy_(torch.from_numpy(coefficients(*tries[chosen])))
        bends = self._bends(shares).double().cpu().numpy()
        self.correction.copy_(torch.from_numpy(_correction(bends, np.log(measured / held_out[chosen]), folds)))
        self.requires_grad_(False)

    def _choose_block(self, shares: Tensor, ms: Tensor, folds: Array) -> None:
        """The block with which the sum predicts best, or one channel where none is clearly better."""
        errors = {}
        for block in (1.0, *BLOCKS):
            self.block.fill_(block)
            problems = self._problems(shares, ms)
            least = min(_off(_held_out(problem, BLOCK_TIE, folds), problem.ms) for problem in problems)
            errors[block] = least * (1 if block > 1 else CLEARLY)
        self.block.fill_(min(errors, key=lambda each: errors[each]))

    def _filled(self, shares: Tensor) -> Tensor:
        """The shares (b n) of whole blocks, with the gradient of the shares themselves."""
        blocks = (shares * self.sizes / self.block - 1e-3).ceil() / (self.sizes / self.block).ceil().clamp_min(1)
        whole = torch.where((self.sizes > 0) & (self.block > 1), blocks, shares)
        return shares + (whole - shares).detach()

    def _columns(self, shares: Tensor) -> Tensor:
        """What is summed (b f), a constant last."""
        return torch.cat([self.features(self._filled(shares)), torch.ones_like(shares[:, :1])], -1)

    def _bends(self, shares: Tensor) -> Tensor:
        """What the correction is linear in (b n+2): the shares that are missing, their mean, and its square."""
        missing = self.dense_shares - shares
        mean = missing.mean(-1, keepdim=True)
        return torch.cat([missing, mean, mean.square()], -1)

    def _problems(self, shares: Tensor, ms: Tensor) -> list[LeastSquares]:
        """The sum of everything that is not measured; with a table, the sum with the measured operators, too."""
        groups = [*self.features.groups, "constant"]
        names = list(dict.fromkeys(groups))
        with torch.no_grad():
            whole = torch.cat([self.dense_shares, shares.to(self.dense_ms)])
            columns = self._columns(whole).double().cpu().numpy()
        sorts = np.array([names.index(group) for group in groups])
        known, twice = np.array([group == MEASURED for group in groups]), np.array([*self.features.twice, False])
        problem = LeastSquares(columns[1:], ms.double().cpu().numpy(), columns[0], float(self.dense_ms), sorts)
        counted = problem.without(known)
        return [counted, replace(problem.without(twice), measured=int(sorts[0]))] if twice.any() else [counted]


@predictors.register("additive")
def additive(axes: Axes, dense_ms: float, table: object | None = None) -> AdditivePredictor:
    """The additive predictor, with the measured operators where there are any."""
    assert table is None or isinstance(table, OperatorTable)
    return AdditivePredictor(axes, dense_ms, table)


def _held_out(problem: LeastSquares, tie: float, folds: Array) -> Array:
    """Milliseconds (n), each predicted by coefficients that had not seen it."""
    predicted = np.empty_like(problem.ms)
    for fold in range(FOLDS):
        out = folds == fold
        predicted[out] = problem.columns[out] @ coefficients(problem.rows(~out), tie)
    return np.maximum(predicted, IDLE * problem.dense_ms)


def _off(predicted: Array, measured: Array) -> float:
    return float(np.abs(predicted / measured - 1).mean())


def _correction(bends: Array, logarithms: Array, folds: Array) -> Array:
    """Weights (m) of the bends (n m) that explain what the sum leaves (n), or zeros where they do not."""
    errors = {np.inf: float(np.abs(logarithms).mean()) * GAIN}
    for ridge in RIDGES:
        found = np.empty_like(logarithms)
        for fold in range(FOLDS):
            out = folds == fold
            found[out] = bends[out] @ _ridge(bends[~out], logarithms[~out], ridge)
        errors[ridge] = float(np.abs(logarithms - found).mean())
    return _ridge(bends, logarithms, min(errors, key=lambda each: errors[each]))


def _ridge(bends: Array, logarithms: Array, ridge: float) -> Array:
    """Ridge regression without an intercept, as the dense model's time is known."""
    if np.isinf(ridge):
        return np.zeros(bends.shape[1])
    target = np.clip(logarithms, -BOUND, BOUND)
    square = bends.T @ bends + ridge * np.eye(bends.shape[1])
    return np.asarray(np.linalg.solve(square, bends.T @ target), dtype=np.float64)
