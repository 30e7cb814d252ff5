"""Recurrent layers: their hidden width is an axis, which every step and every further layer reads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_prune.costs import count
from nas_prune.costs.counts import counted
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch

STEPS = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """A recurrent layer between two linear ones, whose last state is read, too."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.first, self.layer, self.head = nn.Linear(7, layer.input_size), layer, nn.Linear(width, 4)
        self.last = nn.Linear(layer.proj_size or layer.hidden_size, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, states = self.layer(self.first(x).relu())
        state = states[0] if isinstance(states, tuple) else states
        return self.head(y.relu()).mean(1) + self.last(state).mean(0)


def reader(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    """The model, with known weights."""
    torch.manual_seed(0)
    return Reader(kind(10, 6, batch_first=True, **options)).eval()


CASES: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"bidirectional": True, "bias": False}),
    (nn.GRU, {"num_layers": 3}),
    (nn.RNN, {"num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_hidden_width_of_a_recurrent_layer_can_shrink(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    model = reader(kind, **options)
    axes = trace(model, STEPS)
    assert set(axes.free) == {"first", "layer"}
    arch = Arch.random(axes, keep=0.5)
    assert verify(model, axes, arch, STEPS).control_error > 1e-4
    small = derive(model, axes, arch)
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 3)
    assert count(small, STEPS) == counted(axes, arch.sizes(axes))
    with torch.no_grad():
        torch.testing.assert_close(GatedModel(model, axes).eval()(STEPS), model(STEPS), rtol=0, atol=1e-6)


def test_gradients_of_what_is_kept_agree() -> None:
    model = reader(nn.LSTM, num_layers=2, bidirectional=True).double()
    axes = trace(model, STEPS.double())
    arch = Arch.random(axes, keep=0.5)
    small, gated = derive(model, axes, arch), GatedModel(model, axes)
    small(STEPS.double()).square().sum().backward()
    gated.fixed(arch)(STEPS.double()).square().sum().backward()
    for name, parameter in small.named_parameters():
        expected = model.get_parameter(name).grad
        for dim, term in enumerate(axes.tensors[name]):
            kept = axes.indices(term, arch)
            expected = expected if kept is None else expected.index_select(dim, kept)
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-12)


def test_a_state_that_is_given_is_as_wide_as_the_layer() -> None:
    class Answers(nn.Module):
        """Reads, then speaks from the state in which it is, and from one that it learns."""

        def __init__(self) -> None:
            super().__init__()
            self.reads, self.speaks = nn.GRU(7, 6, batch_first=True), nn.GRU(7, 6, batch_first=True)
            self.third, self.state = nn.GRU(6, 8, batch_first=True), nn.Parameter(torch.randn(1, 1, 8))
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.speaks(x, self.reads(x)[1])
            return self.head(self.third(y, self.state.expand(-1, len(x), -1).contiguous())[0].mean(1))

    torch.manual_seed(0)
    model = Answers().eval()
    axes = trace(model, STEPS)
    assert {axis.size for axis in axes.free.values()} == {6, 8}
    assert {member.tensor.partition(".")[0] for member in axes["reads"].members} == {"reads", "speaks", "third"}
    assert "state" in {member.tensor for axis in axes.free.values() for member in axis.members}
    verify(model, axes, Arch.random(axes), STEPS)


def test_a_state_that_is_projected_stays() -> None:
    model = reader(nn.LSTM, proj_size=3)
    axes = trace(model, STEPS)
    assert set(axes.free) == {"first"}
    assert axes["layer"].frozen == "the projected state of lstm.input in layer"
    verify(model, axes, Arch.random(axes), STEPS)


def test_a_state_of_a_width_in_the_code_freezes_the_layer() -> None:
    class Begins(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.first(x), torch.zeros(1, len(x), 6, dtype=x.dtype))[0].mean(1))

    torch.manual_seed(0)
    model = Begins(nn.GRU(10, 6, batch_first=True)).eval()
    axes = trace(model, STEPS)
    assert set(axes.free) == {"first"}
    assert "cannot express it" in str(axes["layer"].frozen)
    verify(model, axes, Arch.random(axes), STEPS)
