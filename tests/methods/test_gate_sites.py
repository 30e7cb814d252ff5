"""Laws of where and how gates act: at readers or at writers, by products or otherwise, alike for all images or not."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Traced, apart, traced, traced_model

from nas_prune.base.errors import SpaceError
from nas_prune.derivation.derive import derive
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import Gate
from nas_prune.tracing.arch import Arch


class Level(Gate):
    """A number per unit."""

    def __init__(self, size: int, fan_in: Sequence[int]) -> None:
        super().__init__(size, fan_in)
        self.level = nn.Parameter(torch.linspace(0.2, 1.0, size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        return self.level

    def open(self, score: Tensor) -> Tensor:
        return score


class Squared(Level):
    """Acts by the square of its number, which is not a product with it."""

    def mix(self, x: Tensor, keep: Tensor) -> Tensor:
        return x * keep * keep


class Half(Level):
    """While it trains, the first half of a batch is blended with the second one, where it is written (as in SCOP)."""

    site = "write"

    def mix(self, x: Tensor, keep: Tensor) -> Tensor:
        real, other = x.chunk(2)
        return torch.cat([keep * real + (1 - keep) * other, other]) if self.training else x


class Seeing(Level):
    """What it keeps of an image is a function of what the writer reads of it (as in ManiDP)."""

    looks = True

    def forward(self, weight: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        assert x is not None
        seen = x.flatten(1).mean(1)
        return torch.sigmoid(seen[:, None] + self.score(weight))


class SeeingSquared(Seeing, Squared):
    """Both: it looks, and what it says acts by its square."""


class Net(nn.Module):
    """Two convolutions with normalisation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.norm(self.one(x)).relu()).mean((2, 3)))


@pytest.fixture
def net() -> Traced:
    """It, in float64."""
    return traced_model(Net().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64))


def by_hand(net: Traced, images: Tensor, one: object, two: object, written: object = None) -> Tensor:
    """The network written out, with these factors of what is read of each width."""
    model = net.model
    x = model.one(images)
    x = model.norm(x if written is None else written(x)).relu()
    x = model.two(x * one).mean((2, 3))
    return F.linear(x * two, model.head.weight, model.head.bias)


def test_a_gate_may_do_something_else_than_multiply_on_one_kind_of_axis_alone(net: Traced) -> None:
    gated = GatedModel(net.model, net.axes, "mask", kinds={"channel": (Squared, {})}).double().eval()
    one, two = (gated.gate(name).level for name in ("one", "two"))
    expected = by_hand(net, net.images, one[:, None, None] ** 2, two**2)
    assert apart(expected.detach(), gated(net.images).detach()) <= 1e-12
    gated(net.images).sum().backward()
    assert all(bool(gate.level.grad.abs().max() > 0) for gate in (gated.gate("one"), gated.gate("two")))


def test_gates_of_several_sorts_act_side_by_side(net: Traced) -> None:
    gates = {"one": Squared(6, [27]).double(), "two": Level(4, [54]).double()}
    gated = GatedModel(net.model, net.axes, gates).eval()
    expected = by_hand(net, net.images, gates["one"].level[:, None, None] ** 2, gates["two"].level)
    assert apart(expected.detach(), gated(net.images).detach()) <= 1e-12


def test_a_gate_that_acts_where_its_axis_is_written_comes_before_normalisation(
    net: Traced,
) -> None:
    gates = {"one": Half(6, [27]).double(), "two": Level(4, [54]).double()}
    gated, plain = GatedModel(net.model, net.axes, gates), gates["one"].level[:, None, None]

    def written(x: Tensor) -> Tensor:
        return torch.cat([plain * x[:2] + (1 - plain) * x[2:], x[2:]])

    net.model.train()
    expected = by_hand(net, net.images, 1, gates["two"].level, written)
    assert apart(expected.detach(), gated.train()(net.images).detach()) <= 1e-12
    expected = by_hand(net, net.images, 1, gates["two"].level) if net.model.eval() else None
    assert apart(expected.detach(), gated.eval()(net.images).detach()) <= 1e-12


@pytest.mark.parametrize(("kind", "power"), [(Seeing, 1), (SeeingSquared, 2)])
def test_a_gate_that_looks_keeps_of_each_image_what_it_says(net: Traced, kind: type[Seeing], power: int) -> None:
    gates = {"one": kind(6, [27]).double(), "two": kind(4, [54]).double()}
    gated, model = GatedModel(net.model, net.axes, gates).eval(), net.model
    one = torch.sigmoid(net.images.flatten(1).mean(1)[:, None] + gates["one"].level)
    inside = model.norm(model.one(net.images)).relu() * one[:, :, None, None] ** power
    two = torch.sigmoid(inside.flatten(1).mean(1)[:, None] + gates["two"].level)
    expected = by_hand(net, net.images, one[:, :, None, None] ** power, two**power)
    assert apart(expected.detach(), gated(net.images).detach()) <= 1e-12
    assert torch.allclose(gated.sizes()["one"], one.mean(0).sum())
    gated.sizes()["two"].backward()
    assert bool(gates["one"].level.grad.abs().max() > 0), "what the second gate sees was gated by the first"


@pytest.mark.parametrize("gate", [Squared, Half, Seeing, SeeingSquared])
def test_whatever_a_gate_does_an_architecture_is_what_is_derived(net: Traced, gate: type[Gate]) -> None:
    gated = GatedModel(net.model, net.axes, gate).double().eval()
    arch = Arch({"one": [0, 2, 5], "two": [1, 3]})
    with torch.no_grad():
        assert apart(derive(net.model, net.axes, arch)(net.images), gated.fixed(arch)(net.images)) <= 1e-12
        assert torch.equal(gated.opened()(net.images), net.model(net.images))


def test_where_a_gate_cannot_act_is_told() -> None:
    vit = traced("test_vit")
    with pytest.raises(SpaceError, match="looks at all units of an axis together"):
        GatedModel(vit.fresh(), vit.axes, Squared)
    with pytest.raises(SpaceError, match="is not written by convolutions and linear layers alone"):
        GatedModel(vit.fresh(), vit.axes, Half)
