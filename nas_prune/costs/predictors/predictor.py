"""What a latency predictor is: it learns milliseconds as a function of sizes, from sub-networks that were really timed.

A predictor sees the shares n / N of the units that the axes keep, and is fitted once and frozen: a search then asks it
for the time of sizes that nobody measured. It predicts; whether a network is fast enough is always measured. Different
forms suit different devices, so several are registered, and cross-validation chooses (``cross_validation``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from nas_prune.base.registry import Registry
from nas_prune.costs.cost import Columns, Sizes
from nas_prune.tracing import Axes


@dataclass(frozen=True)
class PredictionError:
    """How wrong predictions are on sub-networks that were not trained on; ``mape`` and ``max_ape`` are shares."""

    mape: float
    max_ape: float
    spearman: float
    kendall: float
    held_out: int


class Predictor(nn.Module, ABC):
    """Predicted milliseconds of the derived model, differentiable in the sizes; the base of every predictor.

    ``axes``: name -> full size, in a fixed order; ``dense_ms``: measured latency of the dense model, in which the axes
    ``closed`` (candidates) have no unit. All that ``fit`` learns lies in parameters and buffers whose shapes follow
    from the constructor's arguments, so that the state of a fitted predictor can be loaded into a fresh one.
    """

    unit = "ms"
    dense_ms: Tensor
    dense_shares: Tensor  # (1 n)

    def __init__(self, axes: Mapping[str, int], dense_ms: float, *, closed: Collection[str] = ()) -> None:
        super().__init__()
        self.names, self.full = list(axes), [float(size) for size in axes.values()]
        self.usual = [0.0 if name in closed else size for name, size in zip(self.names, self.full, strict=True)]
        self.register_buffer("dense_ms", torch.tensor(float(dense_ms)))
        dense = [usual / full for usual, full in zip(self.usual, self.full, strict=True)]
        self.register_buffer("dense_shares", torch.tensor([dense]), persistent=False)

    def forward(self, sizes: Sizes) -> Tensor:
        """Milliseconds for one architecture, given as the size of each axis; gradients reach the sizes."""
        return self.predict(self.shares([sizes]))[0]

    def many(self, columns: Columns) -> Tensor:
        """Milliseconds (b) for sizes (b) per axis."""
        count = len(next(iter(columns.values())))
        kept = [
            columns[name] / full if name in columns else torch.full((count,), usual / full)
            for name, full, usual in zip(self.names, self.full, self.usual, strict=True)
        ]
        return self.predict(torch.stack([share.to(self.dense_ms) for share in kept], -1))

    def shares(self, architectures: Sequence[Sizes]) -> Tensor:
        """Inputs of the predictor (b n): the share of its units that each axis keeps; an axis left out is dense."""
        like = self.dense_ms
        full = torch.tensor(self.full, dtype=like.dtype, device=like.device)
        return torch.stack([self._row(sizes) for sizes in architectures]) / full

    def _row(self, sizes: Sizes) -> Tensor:
        """Sizes (n) of one architecture, in the order of the axes."""
        values = [sizes.get(name, usual) for name, usual in zip(self.names, self.usual, strict=True)]
        like = self.dense_ms
        if any(isinstance(value, Tensor) for value in values):
            return torch.stack([torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values])
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    @abstractmethod
    def predict(self, shares: Tensor) -> Tensor:
        """Milliseconds (b) for shares (b n)."""

    @abstractmethod
    def fit(self, shares: Tensor, ms: Tensor, *, generator: torch.Generator) -> None:
        """Learn from shares (b n) and measured milliseconds (b); frozen afterwards (``requires_grad_(False)``)."""

    def error(self, shares: Tensor, ms: Tensor) -> PredictionError:
        """Compare with measured milliseconds (b) of shares (b n) that were held out."""
        with torch.no_grad():
            return compare(self.predict(shares), ms)


Factory = Callable[[Axes, float, object | None], Predictor]
"""``(axes, dense_ms, table) -> Predictor``: an unfitted one; ``table``: measured operators, where there are any."""

predictors: Registry[Factory] = Registry("latency predictor", __package__)


def dense_sizes(axes: Axes) -> dict[str, int]:
    """Full size of every axis that may change: what a predictor is made for."""
    return {name: axis.size for name, axis in axes.free.items()}


def left_out(axes: Axes) -> list[str]:
    """The candidates that are not part of the dense model."""
    return [name for name, axis in axes.free.items() if axis.dense < axis.size]


def compare(predicted: Tensor, ms: Tensor) -> PredictionError:
    """Error of predicted against measured milliseconds, (b) both."""
    off = (predicted / ms - 1).abs()
    return PredictionError(
        float(off.mean()), float(off.max()), _rank(spearmanr, predicted, ms), _rank(kendalltau, predicted, ms), len(ms)
    )


def _rank(correlation: Callable[..., object], predicted: Tensor, ms: Tensor) -> float:
    """Rank correlation; 0 where one side is constant, as it then ranks nothing."""
    ranks = predicted.tolist(), ms.tolist()
    if any(len(set(values)) < 2 for values in ranks):
        return 0.0
    return float(correlation(*ranks).statistic)  # type: ignore[attr-defined]
