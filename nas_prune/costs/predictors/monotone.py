"""A latency predictor for which more units never take less time, whatever the timings that it was fitted on.

A search follows the predictor's gradient: where it is negative by accident, the search opens units "to save time".
Here that cannot happen, by construction. Two monotone models are fitted, and the prediction is their geometric mean:

- a network of three layers with positive weights (exp of what is learned), whose units are a third convex, a third
  concave and a third saturating: Runje and Shankaranarayana, "Constrained Monotonic Neural Networks" (arXiv
  2205.11775), where positive weights with a convex activation alone could only express convex functions;
- a quadratic form with non-negative entries, because a layer's work is the product of its two widths.

The mean, the quadratic form, tanh for the bounded third of the units and exp for the sign of the weights are ours.
On planted latencies the mean lay between the two where the quadratic form was exact, and beat both where neither was.
"""

from collections.abc import Collection, Mapping
from itertools import pairwise
from math import log

import numpy as np
import torch
from einops import einsum
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.costs.predictors.predictor import Predictor, dense_sizes, left_out, predictors
from nas_prune.tracing import Axes

IDLE = 1e-4  # least share of the dense latency that a call takes, however little it computes
ANCHOR = 10.0  # the dense model is timed beside every sample, so its row weighs as much as this many
RIDGE = 0.04  # prior per axis, of the order of the timing noise: entries are alike where the timings do not say


class PositiveNetwork(nn.Module):
    """Three layers with positive weights: shares (b n) -> logarithm of the latency (b), increasing in every share."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        pairs = list(pairwise([width, 3 * hidden, 3 * hidden, 1]))
        draw = torch.Generator().manual_seed(0)
        # positive weights of mean 1 / inputs: a layer starts as an average, of the size of what it averages
        starts = [0.3 * torch.randn(pair, generator=draw) - log(max(1, pair[0])) for pair in pairs]
        self.logarithms = nn.ParameterList(starts)
        self.biases = nn.ParameterList(0.5 * torch.randn(outputs, generator=draw) for _, outputs in pairs)

    def forward(self, shares: Tensor) -> Tensor:
        """(b n) -> (b)."""
        (first, second, last), biases = [each.exp() for each in self.logarithms], self.biases
        hidden = _bent(shares @ first + biases[0])
        hidden = _bent(hidden @ second + biases[1])
        level: Tensor = hidden @ last + biases[2]
        return level.squeeze(-1)


class MonotonePredictor(Predictor):
    """Predicted milliseconds that never decrease in any size; the dense model's are ``dense_ms`` exactly.

    ``hidden``: units per kind (convex, concave, saturating) in each of the two hidden layers.
    """

    work: Tensor

    def __init__(
        self, axes: Mapping[str, int], dense_ms: float, *, closed: Collection[str] = (), hidden: int = 21
    ) -> None:
        super().__init__(axes, dense_ms, closed=closed)
        self.network = PositiveNetwork(len(self.names), hidden)
        size = len(self.names) + 1
        self.register_buffer("work", torch.full((size, size), 1 / size**2))

    def predict(self, shares: Tensor) -> Tensor:
        """Milliseconds (b) for shares (b n)."""
        ms: Tensor = self.dense_ms * (0.5 * (self._learned(shares) + self._worked(shares))).exp()
        return ms

    def _learned(self, shares: Tensor) -> Tensor:
        """log(latency / dense latency) (b) by the network."""
        level: Tensor = self.network(shares) - self.network(self.dense_shares)
        return level

    def _worked(self, shares: Tensor) -> Tensor:
        """log(latency / dense latency) (b) by the quadratic form in (1, shares)."""
        factors = F.pad(torch.cat([shares, self.dense_shares]), (1, 0), value=1.0)
        work = einsum(factors @ self.work, factors, "b i, b i -> b")
        return (work[:-1] / work[-1]).log()

    def fit(self, shares: Tensor, ms: Tensor, *, steps: int = 800, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fit both models to shares (b n) and milliseconds (b), then freeze. Nothing in it is random."""
        target = ms / self.dense_ms
        self.work.copy_(_quadratic_form(torch.cat([shares, self.dense_shares]), target))
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.huber_loss(self._learned(shares), target.log(), delta=0.05)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.requires_grad_(False)


def _bent(x: Tensor) -> Tensor:
    """A third of the units (b h) bent upwards, a third downwards, a third at both ends; all increasing."""
    convex, concave, saturating = x.chunk(3, dim=-1)
    return torch.cat([F.elu(convex), -F.elu(-concave), saturating.tanh()], dim=-1)


def _quadratic_form(shares: Tensor, target: Tensor) -> Tensor:
    """Entries >= 0 (n+1 n+1) of the form in (1, shares) with the least squared relative error, and a ridge.

    ``shares`` (b+1 n), the last of the dense model; ``target``: latency over dense latency (b). L-BFGS-B needs no
    column per pair of axes, as a solver of non-negative least squares would: their number would grow with the square
    of the axes.
    """
    factors = np.pad(shares.double().cpu().numpy(), ((0, 0), (1, 0)), constant_values=1.0)
    weight = np.append(1 / target.double().numpy(), ANCHOR)
    wanted = np.append(np.ones(len(target)), ANCHOR)
    size = factors.shape[1]
    ridge = (RIDGE * size) ** 2

    def loss(entries: np.ndarray) -> tuple[float, np.ndarray]:
        off = ((factors @ entries.reshape(size, size)) * factors).sum(1) * weight - wanted
        slope = (factors * (off * weight)[:, None]).T @ factors
        return 0.5 * float(off @ off + ridge * entries @ entries), slope.ravel() + ridge * entries

    start = np.full(size**2, 1 / size**2)
    bounds = [(IDLE, None)] + [(0.0, None)] * (size**2 - 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
    return torch.from_numpy(found.x.reshape(size, size))


@predictors.register("monotone")
def monotone(axes: Axes, dense_ms: float, table: object | None = None) -> MonotonePredictor:  # noqa: ARG001
    """The monotone predictor over the free axes; measured operators are of no use to it."""
    return MonotonePredictor(dense_sizes(axes), dense_ms, closed=left_out(axes))
