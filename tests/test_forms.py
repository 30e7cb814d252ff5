"""Forms in which people write models: other names of operators, other layers, other inputs and outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_prune.arch import Arch
from nas_prune.axes import BITS
from nas_prune.derivation import derive
from nas_prune.expressible import trace
from nas_prune.tracing import Axes
from nas_prune.verification import verify

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(axes: Axes) -> list[str]:
    """The free axes that are widths."""
    return [name for name, axis in axes.free.items() if axis.kind not in BITS]


def proven(model: nn.Module, inputs: Any = IMAGES) -> tuple[Axes, nn.Module]:
    """The axes of a model and, verified, what is left of it at half of every width."""
    torch.manual_seed(0)
    model.eval()
    axes = trace(model, inputs)
    arch = Arch.random(axes, keep=0.5)
    verify(model, axes, arch, inputs)
    return axes, derive(model, axes, arch)


class Meet(nn.Module):
    """Two convolutions whose outputs meet in a function, before two more."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.meet, self.one, self.two = meet, nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.read, self.out = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.read(self.meet(self.one(x), self.two(x)))))


JOINED = {
    "concat": lambda a, b: torch.concat([a, b], 1),
    "hstack": lambda a, b: torch.hstack([a, b]),
    "column_stack": lambda a, b: torch.column_stack([a, b]),
}
TIED = {
    "multiply": torch.multiply,
    "divide": lambda a, b: torch.divide(a, 2 + b.sigmoid()),
    "subtract": torch.subtract,
    "negative": lambda a, b: b + torch.negative(a),
    "absolute": lambda a, b: b + torch.absolute(a),
    "clip": lambda a, b: b + torch.clip(a, -1, 1),
    "expit": lambda a, b: b + torch.special.expit(a),
    "greater": lambda a, b: torch.where(torch.greater(a, 0), a, b),
    "arctan": lambda a, b: b + torch.arctan(a),
    "swapaxes": lambda a, b: (a.swapaxes(1, 3) + b.swapaxes(1, 3)).swapaxes(1, 3),
    "moveaxis": lambda a, b: torch.moveaxis(torch.moveaxis(a + b, 1, -1), -1, 1),
    "skip through a function": lambda a, b: a + torch.abs(a) + b + torch.abs(b),
    "in place": lambda a, b: a.mul_(2).add_(b),
    "largest channel": lambda a, b: a * torch.max(b, 1, keepdim=True)[0],
    "smallest channel": lambda a, b: a * b.min(dim=1, keepdim=True).values,
    "amin": lambda a, b: a * b.amin(1, keepdim=True),
    "logical": lambda a, b: a * torch.logical_xor(b > 0, a > 0),
    "slice": lambda a, b: torch.cat([a[:, :3] + b[:, :3], a[:, 3:] + b[:, 3:]], 1),
}


@pytest.mark.parametrize("name", JOINED)
def test_other_names_of_a_concatenation_leave_every_width_free(name: str) -> None:
    axes, _ = proven(Meet(JOINED[name], 16))
    assert set(widths(axes)) >= {"one", "two", "read"}


@pytest.mark.parametrize("name", TIED)
def test_other_names_of_operators_leave_the_widths_free(name: str) -> None:
    axes, _ = proven(Meet(TIED[name], 8))
    assert set(widths(axes)) >= {"one", "read"}, {name: axis.frozen for name, axis in axes.items()}


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: torch.tensordot(a, b.mean((2, 3)), dims=([1], [1]))[:, None].mean(-1) + a,
        lambda a, b: a * F.cosine_similarity(a, b, 1)[:, None],
        lambda a, b: a * torch.linalg.norm(b, dim=1, keepdim=True),
        lambda a, b: a * torch.linalg.vecdot(a, b, dim=1)[:, None],
        lambda a, b: (a.flatten(2).mT @ b.flatten(2)).mean((1, 2))[:, None, None, None] * a,
        lambda a, b: a * torch.norm(b, dim=1, keepdim=True) * b.norm(dim=1, keepdim=True),
        lambda a, b: a * b.logsumexp(1, keepdim=True),
        lambda a, b: a * torch.argmax(b, 1, keepdim=True),
        lambda a, b: (
            a + torch.bilinear(a.mean((2, 3)), b.mean((2, 3)), torch.ones(8, 8, 8).to(a), None)[..., None, None]
        ),
    ],
)
def test_a_call_that_no_gate_reaches_is_frozen_and_what_is_left_exact(meet: Callable[[Tensor, Tensor], Tensor]) -> None:
    axes, _ = proven(Meet(meet, 8))
    assert "read" in axes.free
