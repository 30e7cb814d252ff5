"""What is still soft when a search ends is moved into the weights: what is derived computes what the gates said."""

import pytest
import torch
from zoo import Traced, apart, traced

import nas_prune as npr
from nas_prune.base.axis import BITS
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.roles.readers import readers
from nas_prune.tracing.space import SearchSpace

EXACT = 1e-9
SOFT = ("sigmoid", "hard_concrete", "softmax", "shapley", "dmcp")


def learnt(net: Traced, gate: str) -> GatedModel:
    """A gated model in float64 whose gates say all kinds of things."""
    space = SearchSpace.read("channels", net.axes)
    gated = GatedModel(net.double(), space, gate).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in gated.gates.values():
            for name, value in [*each.named_parameters(), *each.named_buffers()]:
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(drawn > 0 if name == "keep" else drawn.to(value.dtype))
    return gated


@pytest.mark.parametrize("gate", [name for name, kind in gates.items() if not kind.looks])  # else test_manidp
@torch.no_grad()
def test_what_is_derived_is_what_was_gated(gate: str) -> None:
    net = traced("test_resnet")
    gated, images = learnt(net, gate), net.images.double()
    said, arch = gated.gate_values(), gated.arch()
    soft = {name for name, keep in said.items() if bool(((keep > 0) & (keep < 1)).any())}
    assert (gate in SOFT) == bool(soft)
    some = Arch({name: units[::2] or units for name, units in arch.kept.items()})
    open_there = Arch({name: [unit for unit in units if said[name][unit] > 0] for name, units in some.kept.items()})
    expected = gated(images), gated.fixed(open_there, mixed=True)(images)
    gated.fold()
    assert apart(expected[0], gated(images)) <= EXACT
    assert apart(expected[1], gated.fixed(open_there)(images)) <= EXACT
    assert apart(expected[1], npr.derive(gated.plain(), gated.axes, open_there)(images)) <= EXACT
    after = gated.gate_values()
    assert all(bool(((keep == 0) | (keep == 1)).all()) for keep in after.values())
    assert all(torch.equal(after[name] > 0, said[name] > 0) for name in said)
    weights = gated.backbone.state_dict()
    gated.fold()  # once is enough
    assert all(torch.equal(value, weights[name]) for name, value in gated.backbone.state_dict().items())


def test_a_unit_that_is_closed_keeps_its_weights() -> None:
    gated = learnt(traced("test_resnet"), "hard_concrete")
    before = {name: value.clone() for name, value in gated.backbone.state_dict().items()}
    said = gated.gate_values()
    gated.fold()
    name = next(each for each in gated.space.alone if bool((said[each] == 0).any()))
    (tensor, _), *_ = readers(gated.axes, name).items()
    closed = said[name] == 0
    now = gated.backbone.state_dict()[tensor]
    assert torch.equal(now[:, closed], before[tensor][:, closed])
    assert torch.allclose(now[:, ~closed], (before[tensor] * said[name].reshape(1, -1, 1, 1))[:, ~closed])


@torch.no_grad()
def test_what_a_norm_or_attention_reads_is_left_as_it_is() -> None:
    net = traced("test_vit")
    gated = GatedModel(net.double(), net.axes, "sigmoid").double().eval()
    read = {name: readers(gated.axes, name) for name, axis in gated.space.free.items() if axis.kind not in BITS}
    stream = [name for name in read if gated.axes[name].kind == "channel"]
    assert all(not read[name] for name in stream)
    assert any(read.values())  # hidden units of an MLP, heads
    expected = gated(net.images.double())
    gated.fold()
    assert apart(expected, gated(net.images.double())) <= EXACT
