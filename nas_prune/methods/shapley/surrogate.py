"""A cheap stand-in for a game, fitted on the coalitions seen so far, whose own Shapley values are known exactly.

A Gaussian process over coalitions with the kernel

    k(S, T) = tau^(players in one of S and T only) * rho^(choices that are empty in one of S and T only)

The first factor says that coalitions with few differences are worth about the same, and lets interactions of higher
order count less; the second that a choice which has lost its last candidate is another regime. ``tau`` and ``rho``
are the most likely ones on a small grid. The kernel is a product over choices, so the mean of k(., T) over random
coalitions in which every player takes part with probability q is a product too, and by Owen's multilinear extension
(Management Science, 1972) the Shapley values of k(., T) are

    phi_i = integral over q from 0 to 1 of d/dq_i E_q[k(., T)]

a polynomial in q, which Gauss-Legendre quadrature integrates exactly. That Shapley values of product kernels take
polynomial time is due to Mohammadi et al., "Computing Exact Shapley Values in Polynomial Time for Product-Kernel
Methods" (arXiv 2505.16516); the kernel over choices and the quadrature are ours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TAUS, RHOS = (0.5, 0.7, 0.85, 0.95, 0.98), (1.0, 0.6, 0.25)
JITTER = 1e-8  # keeps the kernel matrix invertible
TUNED_ON, FITTED_ON = 400, 2000  # coalitions, at most: the cost is cubic


@dataclass(frozen=True)
class Kernel:
    """k(S, T) with its ``tau`` and ``rho``, and which of n players belongs to which of g choices: ``members`` (n g)."""

    tau: float
    rho: float
    members: Tensor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """k (m l) of coalitions a (m n) and b (l n)."""
        return self.tau ** _differ(a.double(), b.double()) * self.rho ** _differ(self.empty(a), self.empty(b))

    def empty(self, coalitions: Tensor) -> Tensor:
        """1.0 where a choice has no candidate left (m g)."""
        return (coalitions.double() @ self.members == 0).double()

    def shapley(self, seen: Tensor) -> Tensor:
        """Shapley values (m n) of the games k(., T) for each T of ``seen`` (m n)."""
        players = seen.shape[1]
        alone = torch.diag((self.members.sum(1) == 0).double())  # who is in no choice is a group of one, without rho
        groups = torch.cat([self.members, alone[:, alone.any(0)]], 1)
        rho = torch.ones(groups.shape[1], dtype=torch.float64)
        rho[: self.members.shape[1]] = self.rho
        nodes, weights = np.polynomial.legendre.leggauss(players // 2 + 1)
        parts = zip((nodes + 1) / 2, weights / 2, strict=True)
        total = torch.zeros(seen.shape, dtype=torch.float64)
        for q, weight in parts:
            total += weight * self._slopes(seen, groups, rho, float(q))
        return total

    def _slopes(self, seen: Tensor, groups: Tensor, rho: Tensor, q: float) -> Tensor:
        """d/dq_i E_q[k(., T)] (m n), all q alike. A group's share is E[tau^d] +- (1 - rho) E[tau^d, group empty]."""
        inside = seen.double()
        share = self.tau + (1 - self.tau) * (inside * q + (1 - inside) * (1 - q))  # E[tau^(i differs)] (m n)
        slope = (1 - self.tau) * (2 * inside - 1)
        count = inside @ groups  # (m g)
        every = (share.log() @ groups).exp()
        none = (1 - rho) * (1 - q) ** groups.sum(0) * self.tau**count
        scale = torch.where(count == 0, rho, 1.0)
        sign = torch.where(count == 0, 1.0, -1.0)
        mean = scale * every + sign * none
        others = mean.log().sum(1, keepdim=True).sub(mean.log()).exp()
        own = groups.argmax(1)  # group of each player
        inner = (scale * every)[:, own] / share * slope - (sign * none)[:, own] / (1 - q)
        return inner * others[:, own]


@dataclass(frozen=True)
class Surrogate:
    """A game f(S) = mean + sum over the coalitions T seen of weight_T k(S, T)."""

    kernel: Kernel
    seen: Tensor
    mean: Tensor
    weights: Tensor

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Values (...) of coalitions (... n)."""
        flat = self.kernel(coalitions.flatten(0, -2), self.seen) @ self.weights + self.mean
        return flat.view(coalitions.shape[:-1])

    def shapley(self) -> Tensor:
        """Its exact Shapley values (n)."""
        return self.weights @ self.kernel.shapley(self.seen)


def tuned(coalitions: Tensor, values: Tensor, choices: tuple[tuple[int, ...], ...] = ()) -> Kernel:
    """The most likely kernel, given the values (m) of coalitions (m n) that are all different."""
    members = torch.zeros(coalitions.shape[1], len(choices), dtype=torch.float64)
    for number, choice in enumerate(choices):
        members[list(choice), number] = 1.0
    some = _spread(len(coalitions), TUNED_ON)
    kernels = [Kernel(tau, rho, members) for rho in (RHOS if choices else (1.0,)) for tau in TAUS]
    likelihoods = [_solved(kernel, coalitions[some], values[some])[2] for kernel in kernels]
    return kernels[int(torch.stack(likelihoods).argmax())]


def fitted(kernel: Kernel, coalitions: Tensor, values: Tensor) -> Surrogate:
    """The surrogate through the values (m) of coalitions (m n) that are all different."""
    some = _spread(len(coalitions), FITTED_ON)
    mean, weights, _ = _solved(kernel, coalitions[some], values[some])
    return Surrogate(kernel, coalitions[some], mean, weights)


def _solved(kernel: Kernel, coalitions: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, weights (m), and log likelihood up to a constant, at the best scale."""
    count = len(values)
    root = torch.linalg.cholesky(kernel(coalitions, coalitions) + JITTER * torch.eye(count, dtype=torch.float64))
    ones, given = torch.cholesky_solve(torch.stack([torch.ones_like(values), values], 1), root).unbind(1)
    mean = given.sum() / ones.sum()
    weights = given - mean * ones
    fit = ((values - mean) @ weights / count).clamp(min=torch.finfo(torch.float64).tiny)
    return mean, weights, -count / 2 * fit.log() - root.diagonal().log().sum()


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """In how many entries rows of a (m n) and rows of b (l n), of 0 and 1, differ (m l)."""
    return a.sum(1)[:, None] + b.sum(1)[None, :] - 2 * a @ b.T


def _spread(count: int, most: int) -> Tensor:
    """At most ``most`` indices, evenly spread."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long()
