"""Numbers that code computes from widths: a scale of scores stays the dense one, and any other number its width."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import User, few

from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.tracing.arch import Arch

Scores = Callable[[Tensor, Tensor], Tensor]


def product(q: Tensor, k: Tensor) -> Tensor:
    """Scores without a scale."""
    return torch.einsum("bhid,bhjd->bhij", q, k)


class Attention(User):
    """Attention whose scores are computed by a function."""

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.patch, self.heads, self.scores = nn.Conv2d(3, 12, 4, stride=4), 2, scores
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = self.scores(q, k).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1))


KEPT: dict[str, Scores] = {
    "behind an einsum": lambda q, k: product(q, k) / math.sqrt(q.shape[-1]),
    "keys first": lambda q, k: torch.einsum("bhjd,bhid->bhij", k, q) * q.shape[-1] ** -0.5,
    "before an einsum": lambda q, k: product(q * q.shape[-1] ** -0.5, k),
    "on the keys": lambda q, k: product(q, k * k.size(-1) ** -0.5),
    "in place": lambda q, k: product(q, k).div_(np.sqrt(q.shape[-1])),
    "behind a product": lambda q, k: torch.div(q @ k.transpose(-2, -1), math.sqrt(q.shape[-1])),
}
FROZEN: dict[str, Scores] = {
    "a tensor": lambda q, k: product(q, k) / torch.sqrt(torch.tensor(q.shape[-1])),
    "a tensor like another": lambda q, k: product(q, k) / q.new_tensor([q.shape[-1]]).sqrt(),
    "a full tensor": lambda q, k: product(q, k) * torch.full((), q.shape[-1] * 1.0).rsqrt(),
    "a range": lambda q, k: product(q, k) / torch.arange(1, 1 + q.shape[-1]).sum(),
    "a bound": lambda q, k: product(q, k).clamp(max=q.shape[-1] / 64),
    "a slope": lambda q, k: F.elu(product(q, k), alpha=q.shape[-1] / 64),
}


@pytest.mark.parametrize("name", few([*KEPT, *FROZEN], [*list(KEPT)[::2], *list(FROZEN)[::2]]))
def test_a_number_computed_from_a_width_is_kept_or_freezes_it(name: str) -> None:
    torch.manual_seed(0)
    model = Attention((KEPT | FROZEN)[name]).eval()
    axes = trace(model, model.example())
    reasons = {str(axis.frozen) for axis in axes.values() if axis.size == 6 and axis.frozen is not None}
    assert reasons == (set() if name in KEPT else {"the code of Attention computes a number from it"})
    verify(model, axes, Arch.random(axes, keep=0.5), model.example())
