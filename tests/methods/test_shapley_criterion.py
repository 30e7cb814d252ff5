"""Laws of the Shapley criterion: players and their shares, what is held fixed, what is left as it was, and choices."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import traced

from nas_prune.base.axis import Axis
from nas_prune.base.errors import DataError, DivergedError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.criteria.of_loss.shapley import contributions, game_of, players_of, shapley
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.shapley import EstimatePlan
from nas_prune.tracing.arch import Arch

FEW = EstimatePlan(evaluations=2)  # no fewer than two pairs of walks


class Small(nn.Module):
    """Four hidden channels with BatchNorm, three of which are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        with torch.no_grad():
            self.first.weight[0] *= 10
            self.last.weight[:, 2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.first(x))))


def small() -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """A gated network in float64, and batches of different sizes that it is better than chance on."""
    model, x = Small().double(), torch.randn(12, 6, dtype=torch.float64)
    model(x)  # running statistics
    labels = model.eval()(x).argmax(1)
    return GatedModel(model, trace(model, x[:2])), [(x[:8], labels[:8]), (x[8:], labels[8:])]


def worth(gated: GatedModel, batches: Sequence[tuple[Tensor, Tensor]], kept: Sequence[int]) -> float:
    """-cross-entropy over all images with these units of the only axis."""
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    gated.eval()
    with torch.no_grad():
        return -float(F.cross_entropy(gated.fixed(Arch({"first": kept}))(images), labels))


def test_values_are_those_of_the_formula() -> None:
    gated, batches = small()
    score = shapley(gated, batches)["first"]
    orders = list(permutations((0, 1, 3)))  # unit 2 is a dummy, and so stands in
    for unit in (0, 1, 3):
        before = [sorted(order[: order.index(unit)]) or [2] for order in orders]
        gains = [worth(gated, batches, sorted({*kept, unit} - {2})) - worth(gated, batches, kept) for kept in before]
        assert float(score[unit]) == pytest.approx(sum(gains) / len(orders), rel=1e-6)
    assert float(score[2]) == pytest.approx(0, abs=1e-12)


def test_accuracy_counts_images() -> None:
    gated, batches = small()
    game = game_of(gated, batches, players_of(gated, 8), objective="accuracy")
    found = contributions(gated, game, EstimatePlan())
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    floor = gated.eval().fixed(Arch({"first": [2]}))(images).argmax(1)
    assert float(found.values.sum()) == pytest.approx(1 - float((floor == labels).double().mean()))


def test_a_group_shares_its_value_and_the_number_of_players_is_kept() -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), net.axes)
    team = players_of(gated, 60)
    assert len(team) <= 60
    for name, axis in net.axes.free.items():
        groups = [player.units for player in team if player.axis == name]
        units = sorted(unit for group in groups for unit in group)
        assert len(units) == len(set(units)) == axis.size
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    norms = gated.weights("layer1.0.conv1")[0].square().sum(1)
    groups = [list(player.units) for player in team if player.axis == "layer1.0.conv1"]
    assert all(norms[one].min() >= norms[other].max() for one, other in pairwise(groups))


def test_the_model_is_left_as_it_was_and_batches_are_read_once() -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), net.axes).train()
    gated.backbone.layer2.eval()
    modes = [module.training for module in gated.modules()]
    state = copy.deepcopy(gated.state_dict())
    labels = torch.tensor([1, 2])
    scores = criteria["shapley"](gated, iter([(net.images[:2], labels)]), players=1, plan=FEW)
    assert [module.training for module in gated.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in gated.state_dict().items())
    assert {name: score.shape for name, score in scores.items()} == {
        name: (axis.size,) for name, axis in net.axes.free.items()
    }
    assert all(bool(score.isfinite().all()) and not score.requires_grad for score in scores.values())


def test_no_batch_and_no_number_are_errors() -> None:
    gated, batches = small()
    with pytest.raises(DataError, match="at least one batch"):
        shapley(gated, [])
    images, labels = batches[0]
    with pytest.raises(DivergedError, match="not a number"):
        shapley(gated, [(images * float("nan"), labels)])


class Fake(nn.Module):
    """Just enough of a gated model: three choices of four candidates in a row, each a gain of one hidden direction.

    A candidate adds its quality to its choice's strength; the network is as sure as the product of the choices.
    """

    best = (2, 0, 3)

    def __init__(self) -> None:
        super().__init__()
        names = {f"c{c}": tuple(f"c{c}.op{k}" for k in range(4)) for c in range(3)}
        free = {name: Axis(name, "operation", 1, ()) for group in names.values() for name in group}
        self.space = SimpleNamespace(free=free, choices=names, minimum=dict.fromkeys(free, 0))
        self.norm = nn.BatchNorm1d(3)
        self.quality = torch.tensor([[0.1, 0.2, 1.0, 0.3], [0.9, 0.15, 0.25, 0.05], [0.3, 0.1, 0.2, 1.1]])
        self.kept: list[Arch] = []

    def fixed(self, arch: Arch, *, mixed: bool = False) -> Any:
        """What it computes with these candidates; it has no gates to mix by."""
        assert not mixed
        return FakeFixed(self, arch)

    def forward(self, x: Tensor) -> Tensor:
        return x


class FakeFixed:
    """The fake while it computes one architecture."""

    def __init__(self, fake: Fake, arch: Arch) -> None:
        self.fake, self.arch = fake, arch

    def keep(self) -> dict[str, Tensor]:
        """1 or 0 per candidate."""
        return {name: torch.full((1,), float(len(self.arch.kept.get(name, [0])))) for name in self.fake.space.free}

    def __call__(self, images: Tensor) -> Tensor:
        self.fake.kept.append(self.arch)
        kept = torch.cat(list(self.keep().values())).view(3, 4)
        strength = einsum(kept, self.fake.quality, "c k, c k -> c")
        return images * 4 * (1 - torch.exp(-2 * strength)).prod()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Asserts that a model is as it was."""
    state = copy.deepcopy(model.state_dict())
    yield
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_the_best_candidate_of_each_choice_scores_highest(objective: Any) -> None:
    fake, labels = Fake(), torch.arange(5)
    noise = 0.6 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    with untouched(fake):
        scores = shapley(fake, [(torch.eye(5) + noise, labels)], objective=objective)  # type: ignore[arg-type]
    if objective == "loss":
        best = [max(range(4), key=lambda k, c=c: float(scores[f"c{c}.op{k}"])) for c in range(3)]
        assert tuple(best) == Fake.best
    assert all(score.shape == (1,) for score in scores.values())
    assert len({str(arch.kept) for arch in fake.kept}) == len(fake.kept) <= 120 + 1 + 1  # each coalition once


def test_a_guard_keeps_one_candidate_of_each_choice() -> None:
    fake, labels = Fake(), torch.arange(5)
    plan = EstimatePlan(evaluations=200, guard=True)
    scores = shapley(fake, [(torch.eye(5), labels)], plan=plan)  # type: ignore[arg-type]
    for arch in fake.kept:
        assert all(any(arch.kept[name] for name in names) for names in fake.space.choices.values())
    best = [max(range(4), key=lambda k, c=c: float(scores[f"c{c}.op{k}"])) for c in range(3)]
    assert tuple(best) == Fake.best
