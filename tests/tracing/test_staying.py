"""Laws of what must stay: a table that a module makes anew when it is cast is never cut."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from zoo import few

from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch

ROTARY = {"qwen3_vit_88m": 192, "deepseek_vit_412m": 224}


class Table(nn.Module):
    """Rows of frequencies; whoever casts it has rounded them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("rows", torch.arange(width) / width, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """The features, each times its frequency."""
        return features * self.rows


class Refilled(Table):
    """The same, filled once more when it is cast."""

    def _apply(self, *arguments, **named):  # type: ignore[no-untyped-def]
        super()._apply(*arguments, **named)
        self.rows = (torch.arange(self.width) / self.width).to(self.rows)
        return self


@pytest.mark.parametrize("kind", [Table, Refilled])
def test_a_table_that_is_made_anew_stays_and_another_one_is_cut(kind: type[Table]) -> None:
    model = nn.Sequential(nn.Linear(3, 8), kind(8), nn.Linear(8, 2)).eval()
    images = torch.randn(2, 3)
    axes = trace(model, images)
    assert ("0" in axes.free) == (kind is Table)
    if kind is Refilled:
        assert (
            axes["0"].frozen == "tied to a fixed dimension by mul.Tensor in 1 (Refilled makes it anew when it is cast)"
        )
    small = derive(model, axes, Arch({name: range(3, 5) for name in axes.free}))
    assert torch.allclose(copy.deepcopy(small).double()(images.double()).float(), small(images), atol=1e-6)


@pytest.mark.parametrize("name", few(ROTARY, ["qwen3_vit_88m"]))
def test_what_is_derived_with_a_rotary_embedding_can_be_cast(name: str) -> None:
    model, images = timm.create_model(name, depth=1).eval(), torch.randn(1, 3, ROTARY[name], ROTARY[name])
    axes = trace(model, images)
    arch = Arch({name: range(axis.size // 2) for name, axis in axes.free.items() if axis.kind != "depth"})
    small = derive(model, axes, arch)
    with torch.no_grad():
        single, double = small(images), copy.deepcopy(small).double()(images.double())
    assert torch.allclose(single.double(), double, atol=1e-3 * float(double.abs().max()))
