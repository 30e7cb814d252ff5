"""Criteria that look at the weights, or at nothing: random, LAMP, FPGM, Network Slimming, each beside a naive loop."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from zoo import User, traced

from nas_prune.base.errors import SpaceError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing import Axes


class Residual(User):
    """A residual stage with two norms, a concatenation with norms on both its parts, and a hidden width without one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.inner, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.side, self.both = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(10)
        self.hidden, self.head = nn.Linear(10, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x)).relu()
        x = x + self.second(self.inner(x))
        x = self.both(torch.cat([self.side(x), x], 1)).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


def gated_of(model: nn.Module, x: Tensor) -> GatedModel:
    """A gated model, every number of which is random."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model = model.double().eval()
    return GatedModel(model, trace(model, x.double()))


def residual() -> GatedModel:
    """The network above."""
    return gated_of(Residual(), torch.randn(2, 3, 8, 8))


def rows_of(gated: GatedModel) -> dict[str, list[list[float]]]:
    """By hand: what writes each unit of the network above."""
    net = gated.backbone
    stage = [
        [*a.flatten().tolist(), *b.flatten().tolist()] for a, b in zip(net.stem.weight, net.inner.weight, strict=True)
    ]
    return {"stem": stage, "side": net.side.weight.flatten(1).tolist(), "hidden": net.hidden.weight.tolist()}


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_the_norm_of_all_that_writes_a_unit(norm: int) -> None:
    gated = residual()
    scores = criteria["magnitude"](gated, [], norm=norm)
    for name, rows in rows_of(gated).items():
        expected = [sum(abs(w) ** norm for w in row) ** (1 / norm) for row in rows]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-9)


def test_random_scores_are_of_their_seed_and_axis_alone() -> None:
    gated = residual()
    scores, other = criteria["random"](gated, []), criteria["random"](gated, [], seed=1)
    alone = GatedModel(gated.plain(), without(gated, "side"))
    for name, score in scores.items():
        assert bool(((score >= 0) & (score < 1)).all())
        assert len(set(score.tolist())) == len(score)
        assert not torch.equal(score, other[name])
    assert all(torch.equal(score, scores[name]) for name, score in criteria["random"](alone, []).items())
    with torch.no_grad():
        gated.backbone.stem.weight.zero_()
    assert all(torch.equal(score, scores[name]) for name, score in criteria["random"](gated, []).items())


def without(gated: GatedModel, name: str) -> Axes:
    """Its axes, one of them frozen."""
    axes = gated.axes
    return replace(axes, named={**axes.named, name: replace(axes[name], frozen="for a test")})


def test_random_units_are_spread_evenly() -> None:
    net = traced("test_resnet")
    scores = torch.cat(list(criteria["random"](GatedModel(net.fresh(), net.axes), []).values()))
    assert float(scores.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / len(scores)))


def test_lamp_is_the_share_in_what_is_as_large() -> None:
    gated = residual()
    scores = criteria["lamp"](gated, [])
    for name, rows in rows_of(gated).items():
        squares = [sum(w * w for w in row) for row in rows]
        expected = [one / sum(other for other in squares if other >= one) for one in squares]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-9)


def test_lamp_of_an_axis_is_the_same_at_every_scale_and_1_at_its_best() -> None:
    gated = residual()
    scores = criteria["lamp"](gated, [])
    gated.scale("side", torch.full((4,), 1e-3))
    scaled = criteria["lamp"](gated, [])
    assert all(float(score.max()) == 1 for score in scores.values())
    assert all(torch.allclose(scaled[name], score, rtol=1e-9) for name, score in scores.items())


def test_lamp_of_equal_units_is_equal_and_of_nothing_is_0() -> None:
    gated = residual()
    with torch.no_grad():
        gated.backbone.side.weight.fill_(1.0)
        gated.backbone.hidden.weight.zero_()
    scores = criteria["lamp"](gated, [])
    assert scores["side"].tolist() == [0.25] * 4
    assert scores["hidden"].tolist() == [0.0] * 5


def test_fpgm_is_the_sum_of_distances() -> None:
    gated = residual()
    scores = criteria["fpgm"](gated, [])
    for name, rows in rows_of(gated).items():
        assert scores[name].tolist() == pytest.approx([sum(math.dist(a, b) for b in rows) for a in rows], rel=1e-9)


def test_fpgm_lets_the_median_go_however_large_it_is() -> None:
    gated = residual()
    with torch.no_grad():
        weight = gated.backbone.hidden.weight  # (5 10): a square far out, and its centre
        weight.fill_(10.0)
        weight[:4, :2] += torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    score = criteria["fpgm"](gated, [])["hidden"]
    assert score.tolist() == pytest.approx([3 + 2 * math.sqrt(2)] * 4 + [4.0])
    with torch.no_grad():
        weight.fill_(7.0)
    assert criteria["fpgm"](gated, [])["hidden"].tolist() == [0.0] * 5  # duplicates of one another


def test_slimming_is_the_mean_scale_of_the_norms_on_an_axis() -> None:
    gated = residual()
    net, scores = gated.backbone, criteria["slimming"](gated, [])
    both = net.both.weight.detach().abs()
    stage = (net.first.weight.detach().abs() + net.second.weight.detach().abs() + both[4:]) / 3
    assert torch.allclose(scores["side"], both[:4], rtol=1e-12)
    assert torch.allclose(scores["stem"], stage, rtol=1e-12)
    assert scores["hidden"].tolist() == [float(torch.cat([both[:4], stage]).max())] * 5  # no norm: it stays


def test_a_channel_that_slimming_scores_0_can_be_closed_for_nothing() -> None:
    gated, x = residual(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net = gated.backbone
    with torch.no_grad():
        net.both.weight[1], net.both.bias[1] = 0, 0
    assert float(criteria["slimming"](gated, [])["side"][1]) == 0
    opened = gated.opened()
    dense = opened(x)
    opened.keep()["side"] = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    assert torch.equal(opened(x), dense)


def test_slimming_says_where_there_is_nothing_to_look_at() -> None:
    gated = gated_of(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(2, 5))
    with pytest.raises(SpaceError, match="another criterion, such as magnitude"):
        criteria["slimming"](gated, [])


@pytest.mark.parametrize("name", ["lamp", "fpgm", "slimming"])
def test_permuting_units_permutes_scores(name: str) -> None:
    gated, order = residual(), torch.tensor([2, 0, 3, 1])
    moved = copy.deepcopy(gated)
    with torch.no_grad():
        for tensor in (moved.backbone.side.weight, moved.backbone.both.weight):
            tensor[:4] = tensor[order].clone()
    assert torch.allclose(criteria[name](moved, [])["side"], criteria[name](gated, [])["side"][order], rtol=1e-9)
