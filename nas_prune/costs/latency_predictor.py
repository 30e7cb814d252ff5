"""LPNet: a small network that predicts milliseconds from the sizes of the axes.

Li et al., "Weight-dependent Gates" (arXiv 2007.02066): three fully connected layers, trained on sub-networks that were
really built and timed, frozen during the joint training. Ours: inputs are the shares n / N in [0, 1], and the output is
log(latency / dense latency), so a prediction is always positive and scale-free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.costs.cost import Sizes, costs


@dataclass(frozen=True)
class PredictionError:
    """How wrong predictions are on sub-networks that were not trained on; ``mape`` and ``max_ape`` are shares."""

    mape: float
    max_ape: float
    spearman: float
    kendall: float
    held_out: int


@costs.register("latency")
class LatencyPredictor(nn.Module):
    """Predicted milliseconds of the derived model.

    ``axes``: name -> dense size, in a fixed order; ``dense_ms``: measured latency of the dense model.
    """

    unit = "ms"
    dense_ms: Tensor

    def __init__(self, axes: Mapping[str, int], dense_ms: float, *, hidden: int = 64) -> None:
        super().__init__()
        self.names, self.full = list(axes), [float(size) for size in axes.values()]
        self.register_buffer("dense_ms", torch.tensor(float(dense_ms)))
        width = len(self.names)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, sizes: Sizes) -> Tensor:
        """Milliseconds for one architecture, given as the size of each axis; gradients reach the sizes."""
        return self.predict(self.shares([sizes]))[0]

    def shares(self, architectures: Sequence[Sizes]) -> Tensor:
        """Inputs of the network (b n): the share of its units that each axis keeps."""
        like = self.dense_ms
        rows = [
            torch.stack(
                [
                    torch.as_tensor(sizes.get(n, full), dtype=like.dtype, device=like.device) / full
                    for n, full in zip(self.names, self.full, strict=True)
                ]
            )
            for sizes in architectures
        ]
        return torch.stack(rows)

    def predict(self, shares: Tensor) -> Tensor:
        """Milliseconds (b) for shares (b n)."""
        # the dense model's own time is known: the network only has to explain the difference
        logarithm = self.layers(shares) - self.layers(torch.ones_like(shares[:1]))
        ms: Tensor = self.dense_ms * logarithm.squeeze(-1).exp()
        return ms

    def fit(self, shares: Tensor, ms: Tensor, *, steps: int, generator: torch.Generator) -> None:
        """Train on shares (b n) and measured milliseconds (b), Huber loss on the logarithm; frozen afterwards."""
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=3e-3, weight_decay=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        target = (ms / self.dense_ms).log()
        for _ in range(steps):
            batch = torch.randint(len(shares), (min(32, len(shares)),), generator=generator)
            optimizer.zero_grad()
            predicted = (self.predict(shares[batch]) / self.dense_ms).log()
            loss: Tensor = F.huber_loss(predicted, target[batch], delta=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.requires_grad_(False)

    def error(self, shares: Tensor, ms: Tensor) -> PredictionError:
        """Compare with measurements that were held out."""
        with torch.no_grad():
            predicted = self.predict(shares)
        off = (predicted / ms - 1).abs()
        ranks = predicted.tolist(), ms.tolist()
        return PredictionError(
            float(off.mean()),
            float(off.max()),
            float(spearmanr(*ranks).statistic),
            float(kendalltau(*ranks).statistic),
            len(ms),
        )
