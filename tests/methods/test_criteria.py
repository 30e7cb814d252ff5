"""Laws of criteria: a Taylor score is what closing the unit does to the loss, to first order; the model stays as is."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import few, traced

from nas_prune.base.errors import DataError, DivergedError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.criteria.of_loss.taylor import taylor
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.shapley import EstimatePlan

BRIEF = {  # options of criteria that take seconds otherwise
    "shapley": {"plan": EstimatePlan(evaluations=100)},
    "scop": {"epochs": 2},
}
EVERY = 8  # units from one that the naive loop looks at to the next


def batches_of(images: Tensor, count: int, size: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images of this shape, and labels."""
    generator = torch.Generator().manual_seed(7)
    draw = [torch.randn(size, *images.shape[1:], generator=generator, dtype=images.dtype) for _ in range(count)]
    return [(x, torch.randint(4, (size,), generator=generator)) for x in draw]


def loss_at(gated: GatedModel, batch: tuple[Tensor, Tensor], name: str, keep: Tensor) -> float:
    """The loss when the gate of one axis says ``keep`` (c) and all others are open."""
    opened = gated.opened()
    opened.keep()[name] = keep
    with torch.no_grad():
        return float(F.cross_entropy(opened(batch[0]), batch[1]))


def naive(gated: GatedModel, batches: list[tuple[Tensor, Tensor]], name: str, power: int) -> Tensor:
    """The paper's loop: for every unit and every batch, how the loss moves with the unit's gate (differences)."""
    size, step = gated.space.axes[name].size, 1e-5
    scores = torch.zeros(size, dtype=torch.float64)
    for unit in range(0, size, EVERY):
        for batch in batches:
            move = step * F.one_hot(torch.tensor(unit), size).double()
            up, down = (loss_at(gated, batch, name, 1 + sign * move) for sign in (1, -1))
            scores[unit] += abs((up - down) / (2 * step)) ** power / len(batches)
    return scores


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_scores_are_those_of_the_naive_loop(name: str, power: int) -> None:
    net = traced(name)
    gated = GatedModel(net.double(), net.axes).eval()
    batches = batches_of(net.images.double(), 2)
    scores = taylor(gated, batches, power=power)
    assert scores.keys() == net.axes.free.keys()
    for axis in list(net.axes.free)[:1]:
        expected = naive(gated, batches, axis, power)[::EVERY]
        assert float(expected.min()) > 0
        assert float((scores[axis][::EVERY] - expected).abs().max()) < 1e-6 * float(expected.max())


class Small(nn.Module):
    """Two hidden units' worth of everything: linear, activation, linear."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def small() -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """A gated network in float64 and one batch."""
    model, x = Small().double(), torch.randn(3, 5, dtype=torch.float64)
    return GatedModel(model, trace(model, x)), batches_of(x, 1, 8)


def test_closing_a_unit_of_little_weight_changes_the_loss_by_its_score() -> None:
    gated, batches = small()
    with torch.no_grad():
        gated.backbone.last.weight.mul_(1e-3)  # so little that second order is a thousandth of the first
    score = taylor(gated, batches, power=1)["first"]
    dense = loss_at(gated, batches[0], "first", torch.ones(6, dtype=torch.float64))
    for unit in range(6):
        closed = loss_at(gated, batches[0], "first", 1 - F.one_hot(torch.tensor(unit), 6).double())
        assert abs(closed - dense) == pytest.approx(float(score[unit]), rel=0.02)


def test_a_score_is_the_square_of_weight_times_gradient_summed_over_what_the_gate_multiplies() -> None:
    gated, batches = small()
    score = taylor(gated, batches)["first"]
    model = gated.plain()
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    by_hand = (model.last.weight * model.last.weight.grad).sum(0).square()
    assert torch.allclose(score, by_hand, rtol=1e-9)


def test_permuting_units_permutes_scores() -> None:
    gated, batches = small()
    order = torch.randperm(6)
    moved = copy.deepcopy(gated.plain())
    with torch.no_grad():
        moved.first.weight.copy_(moved.first.weight[order])
        moved.first.bias.copy_(moved.first.bias[order])
        moved.last.weight.copy_(moved.last.weight[:, order])
    there = taylor(GatedModel(moved, trace(moved, batches[0][0])), batches)["first"]
    assert torch.allclose(there, taylor(gated, batches)["first"][order], rtol=1e-9)


@pytest.mark.parametrize("name", criteria)
@pytest.mark.parametrize("gate", few(("mask", "weight"), ("mask",)))
def test_a_criterion_leaves_the_model_untouched(name: str, gate: str) -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), net.axes, gate).train()
    gated.backbone.layer2.eval()
    modes = [module.training for module in gated.modules()]
    state = copy.deepcopy(gated.state_dict())
    first, again = (criteria[name](gated, batches_of(net.images, 2), **BRIEF.get(name, {})) for _ in range(2))
    assert [module.training for module in gated.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in gated.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in gated.parameters())
    assert {key: score.shape for key, score in first.items()} == {
        key: (axis.size,) for key, axis in net.axes.free.items()
    }
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(score.requires_grad for score in first.values())


def test_a_unit_that_nobody_reads_is_worth_nothing() -> None:
    gated, batches = small()
    with torch.no_grad():
        gated.backbone.last.weight[:, 2] = 0
    score = taylor(gated, batches)["first"]
    assert float(score[2]) == 0
    assert int((score > 0).sum()) == 5


def test_the_mean_over_batches_does_not_depend_on_their_number() -> None:
    gated, batches = small()
    assert torch.allclose(taylor(gated, batches * 3)["first"], taylor(gated, batches)["first"], rtol=1e-12)


def test_no_batch_and_no_number_are_errors() -> None:
    gated, batches = small()
    with pytest.raises(DataError, match="at least one batch"):
        taylor(gated, [])
    images, labels = batches[0]
    with pytest.raises(DivergedError, match="not a number"):
        taylor(gated, [(images * float("nan"), labels)])
