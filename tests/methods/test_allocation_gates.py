"""DMCP and DSA: what is learnt is how much of a layer stays; which units these are follows from it."""

from functools import cache
from math import exp

import pytest
import torch
from torch import Tensor, nn

from nas_prune.derivation.derive import derive
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import removed
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.dmcp import MarkovChain
from nas_prune.methods.gates.dsa import SparsityAllocation
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch

SIZES = [1, 2, 12, 64, 100]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 3)).double()


@cache
def axes() -> Axes:
    return trace(net(), torch.randn(2, 4, dtype=torch.float64))


def markov(size: int, *, groups: int = 18) -> MarkovChain:
    """A chain whose numbers are anything from 0 on, in float64."""
    gate = MarkovChain(size, [3], groups=groups).double()
    with torch.no_grad():
        gate.chain.copy_(0.3 * torch.rand_like(gate.chain))
    return gate


# DMCP


@pytest.mark.parametrize("size", SIZES)
def test_a_chain_at_zero_is_the_whole_net_and_its_widths_are_those_of_the_paper(size: int) -> None:
    gate = MarkovChain(size, [3])
    assert gate.eval()([]).tolist() == [1.0] * size
    width = max(1, int(0.05 * size + 1e-9))
    count = min(18, (size - 1) // width)
    assert [int((gate.group == k).sum()) for k in range(count + 1)] == [size - width * count, *[width] * count]


def test_a_chain_from_its_equations() -> None:
    gate, expected, reached = markov(64), 0.0, 1.0
    keep = gate.eval()([])
    for k in range(19):
        reached *= 1.0 if k == 0 else exp(-max(float(gate.chain[k - 1].detach()), 0.0))
        units = gate.group == k
        assert keep[units].tolist() == pytest.approx([reached] * int(units.sum()))
        expected += reached * int(units.sum())
    assert float(gate.charged(keep).sum().detach()) == pytest.approx(expected)


def test_the_expected_width_is_the_mean_of_the_widths_that_are_drawn() -> None:
    gate = markov(64)
    drawn = torch.stack([gate.walked() for _ in range(4000)])
    widths, expected = drawn.sum(1), float(gate.probabilities().sum().detach())
    assert bool((drawn[:, :-1] >= drawn[:, 1:]).all()), "always a prefix"
    error = float(widths.std()) / 4000**0.5
    assert abs(float(widths.mean()) - expected) <= 4 * error


def test_a_width_falls_with_every_number_and_below_zero_a_number_comes_back() -> None:
    gate = markov(64)
    (slope,) = torch.autograd.grad(gate.probabilities().sum(), gate.chain)
    assert bool((slope < 0).all())
    with torch.no_grad():
        gate.chain.fill_(-0.5)
    assert float(torch.autograd.grad(gate.probabilities().sum(), gate.chain)[0].abs().max()) == 0
    gate.advance(0.5)
    assert float(torch.autograd.grad(gate.probabilities().sum(), gate.chain)[0].max()) < 0, "at zero it can rise"


def test_weights_learn_in_nets_that_are_drawn_and_the_chain_in_all_at_once() -> None:
    gate, soft, hard = markov(64).train(), 0, 0
    for _ in range(60):
        keep = gate([])
        (slope,) = torch.autograd.grad(keep.sum(), gate.chain)
        drawn = not bool(slope.any())
        assert not drawn or set(keep.tolist()) <= {0.0, 1.0}
        soft, hard = soft + (not drawn), hard + drawn
        assert float(torch.autograd.grad(gate.charged(keep).sum(), gate.chain)[0].max()) < 0, "a budget moves it always"
    assert min(soft, hard) > 15


def test_a_chain_keeps_a_prefix() -> None:
    gated = GatedModel(net(), axes(), "dmcp").double().eval()
    gate = gated.gate("0")
    with torch.no_grad():
        gate.chain.fill_(0.05)
    units = sorted(gated.arch().kept["0"])
    assert units == list(range(len(units)))
    assert 0 < len(units) < 40
    assert len(units) == int((gate.probabilities() >= 0.5).sum())


@pytest.mark.parametrize("number", [0.0, 1e-9, 0.05, 30.0])
def test_what_a_chain_keeps_is_a_prefix_in_float32_at_any_width(number: float) -> None:
    for size in (64, 512, 2048):
        gate = MarkovChain(size, [3])
        with torch.no_grad():
            gate.chain.fill_(number)
        score = gate.score([]).detach()
        assert score.dtype == torch.float32
        assert bool((score.diff() < 0).all()), "so any width is a prefix, whoever cuts it"
        assert bool((gate.narrowed(torch.arange(0, size, 3), []).score([]).diff() < 0).all())


# DSA


def test_the_longest_filters_stay_where_probabilities_are_alike_to_the_last_bit() -> None:
    weight = torch.rand(128, 9) * torch.logspace(1.5, -1.5, 128)[torch.randperm(128), None]
    weight[5] = weight[40] = weight.abs().sum(1).max()
    gate, lengths = SparsityAllocation(128, [9], init=0.4), weight.abs().sum(1)
    gate.advance(1.0)
    assert len(gate.probabilities([weight]).unique()) < 100, "a sharp choice"
    order = gate.score([weight]).argsort(descending=True, stable=True)
    assert torch.equal(order, lengths.argsort(descending=True, stable=True))
    assert gate([weight]).dtype == torch.float32


@pytest.mark.parametrize("ratio", [-2.0, 0.0, 1.5, 5.0])
@pytest.mark.parametrize("sharpness", [1.0, 8.0, 40.0])
def test_probabilities_have_the_ratio_as_their_mean_and_are_those_of_the_equation(
    ratio: float, sharpness: float
) -> None:
    weight = torch.randn(30, 7, dtype=torch.float64) * torch.linspace(0.1, 3, 30, dtype=torch.float64)[:, None]
    gate = SparsityAllocation(30, [7], init=ratio, sharpness=sharpness).double()
    p, length = gate.probabilities([weight]).detach(), weight.abs().sum(1)
    assert float(p.mean()) == pytest.approx(1 / (1 + exp(-ratio)), abs=1e-10)
    one = int((p - 0.5).abs().argmin())
    beta1 = float(length[one] * (1 / p[one] - 1) ** (1 / sharpness))
    expected = [1 / (1 + (float(each) / beta1) ** -sharpness) for each in length]
    assert p.tolist() == pytest.approx(expected, abs=1e-9)
    assert bool((p[length.argsort()].diff() >= 0).all())


def test_the_gradient_of_a_ratio_is_shared_out_among_the_units() -> None:
    weight = torch.rand(9, 4, dtype=torch.float64)
    gate = SparsityAllocation(9, [4], init=0.4, sharpness=3.0).double()
    alpha = torch.sigmoid(gate.ratio.detach())
    slopes = torch.stack([torch.autograd.grad(gate.probabilities([weight])[c], gate.ratio)[0] for c in range(9)])
    assert float(slopes.sum() / (alpha * (1 - alpha))) == pytest.approx(9), "sum_c dp_c / dalpha == C"
    with torch.no_grad():
        gate.ratio += 1e-5
        up = gate.probabilities([weight])
        gate.ratio -= 2e-5
        down = gate.probabilities([weight])
    assert torch.allclose(slopes, (up - down) / 2e-5, rtol=1e-6)


def test_what_is_drawn_is_as_frequent_as_it_is_probable_and_in_eval_it_is_chosen() -> None:
    weight = torch.rand(9, 4, dtype=torch.float64)
    gate = SparsityAllocation(9, [4], init=0.4, sharpness=3.0).double().train()
    drawn = torch.stack([gate([weight]).detach() for _ in range(2000)])
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert float((drawn.mean(0) - gate.probabilities([weight]).detach()).abs().max()) <= 0.05
    chosen = gate.eval()([weight])
    assert torch.equal(chosen.detach(), (gate.probabilities([weight]) >= 0.5).double())
    assert float(torch.autograd.grad(chosen.sum(), gate.ratio)[0]) > 0


def test_probabilities_become_a_choice_of_as_many_as_the_ratio_says() -> None:
    weight = torch.rand(40, 4, dtype=torch.float64)
    gate = SparsityAllocation(40, [4], init=0.0, final=400.0).double()
    gate.advance(1.0)
    p = gate.probabilities([weight]).detach()
    assert int((p >= 0.5).sum()) == pytest.approx(20, abs=1)
    assert float(torch.minimum(p, 1 - p).mean()) < 0.05


def test_a_ratio_does_not_move_weights_and_equal_lengths_share_it() -> None:
    weight = torch.ones(5, 3, requires_grad=True)
    p = SparsityAllocation(5, [3], init=1.0).probabilities([weight])
    assert p.tolist() == pytest.approx([1 / (1 + exp(-1.0))] * 5)
    p.sum().backward()
    assert weight.grad is None
    assert SparsityAllocation(3, [], init=1.0).probabilities([]).tolist() == pytest.approx([1 / (1 + exp(-1.0))] * 3)


# both


@pytest.mark.parametrize("gate", ["dmcp", "dsa"])
def test_what_is_left_goes_on_as_it_was_and_what_is_chosen_is_derived(gate: str) -> None:
    gated, x = GatedModel(net(), axes(), gate).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        for value in gated.gates.parameters():
            value.add_(0.1 * torch.rand_like(value))
    arch = Arch({"0": range(30), "2": range(9)})
    again, _ = gated_again(gated, removed(gated, arch))
    with torch.no_grad():
        for name, score in again.scores().items():
            assert torch.allclose(score, gated.scores()[name][list(arch.kept[name])], atol=1e-9)
        assert torch.allclose(gated.fixed(arch)(x), derive(gated.backbone, axes(), arch)(x), atol=1e-12)


def test_a_budget_makes_both_narrower() -> None:
    for gate in ("dmcp", "dsa"):
        gated = GatedModel(net(), axes(), gate).double().train()
        optimizer, x = torch.optim.Adam(gated.gates.parameters(), lr=0.1), torch.randn(3, 4, dtype=torch.float64)
        for step in range(60):
            for each in gated.gates.values():
                each.advance(step / 60)
            optimizer.zero_grad()
            gated(x)
            total: Tensor = sum(gated.sizes().values())  # type: ignore[assignment]
            total.backward()
            optimizer.step()
        assert all(len(units) < 0.7 * axes()[name].size for name, units in gated.arch().kept.items())
