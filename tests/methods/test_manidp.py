"""ManiDP: the branch, the thresholds and the penalty from their equations; what skips computes what was gated."""

from functools import cache
from math import ceil, cos, pi
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import apart, traced

from nas_prune.artifact.folder import load, save
from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget, Macs, count
from nas_prune.derivation.derive import derive
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import removed
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.dynamic import Dynamic
from nas_prune.methods.losses import Said
from nas_prune.methods.movers import Aim
from nas_prune.methods.movers.saliency import SaliencyThresholds
from nas_prune.methods.penalties.manifold import ManifoldPenalty, ease, unlike
from nas_prune.methods.schedules import schedules
from nas_prune.methods.skipping import skipping, skipping_error
from nas_prune.ops import Skipping
from nas_prune.tracing import Axes
from nas_prune.tracing.space import SearchSpace

EXACT = 1e-9


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Row(nn.Module):
    """Three convolutions in a row and a classifier: two widths that an image may choose of."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1, self.act1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.two, self.norm2, self.act2 = nn.Conv2d(6, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        self.three, self.head = nn.Conv2d(8, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.norm2(self.two(self.act1(self.norm1(self.one(x))))))
        return self.head(self.three(x).mean((2, 3)))


@cache
def known() -> Axes:
    """Its axes."""
    return trace(Row().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))


def row() -> GatedModel:
    """It with gates, in float64, all numbers moved."""
    model = Row().double()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                value.add_(0.5 * torch.rand_like(value))
    model, axes = model.eval(), known()
    gates = {name: Dynamic(axes[name].size, [27 if name == "one" else 54]) for name in ("one", "two")}
    for name, channels in (("one", 3), ("two", 6)):
        gates[name].face(channels)
    space = SearchSpace.all(axes)
    return GatedModel(model, space, {**gates, "three": GatedModel(Row(), axes).gate("three")}).double().eval()


def turned(gated: GatedModel, share: float, images: Tensor) -> GatedModel:
    """After an epoch over these images."""
    gated.train()
    with torch.no_grad():
        gated(images)
    for gate in gated.gates.values():
        if isinstance(gate, Dynamic):
            gate.turn(share)
    return gated.eval()


def images(count: int = 4, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64)


def kept_by_hand(gate: Dynamic, x: Tensor) -> Tensor:
    """Image by image and channel by channel."""
    branch, kept = gate.branch, torch.zeros(len(x), gate.size, dtype=x.dtype)
    for n, image in enumerate(x):
        seen = [float(channel.mean()) for channel in image]
        lines = branch.first.weight.tolist()
        hidden = [max(0.0, sum(w * u for w, u in zip(line, seen, strict=True))) for line in lines]
        said = [
            min(1000.0, max(0.0, bias + sum(w * v for w, v in zip(line, hidden, strict=True))))
            for line, bias in zip(branch.second.weight.tolist(), branch.second.bias.tolist(), strict=True)
        ]
        for c, saliency in enumerate(said):
            if saliency >= float(branch.threshold) or saliency == max(said):
                kept[n, c] = saliency
    return kept


def test_a_gate_keeps_what_the_equations_say() -> None:
    gated, x = turned(row(), 0.5, images(6)), images()
    one, two, model = gated.gate("one"), gated.gate("two"), gated.backbone
    with torch.no_grad():
        got = gated(x)
        read = model.norm1(F.conv2d(x, model.one.weight, model.one.bias, padding=1)).relu()
        read = read * kept_by_hand(one, x)[:, :, None, None]
        second = F.silu(model.norm2(F.conv2d(read, model.two.weight, stride=2)))
        second = second * kept_by_hand(two, read)[:, :, None, None]
        expected = F.linear(F.conv2d(second, model.three.weight, model.three.bias).mean((2, 3)), model.head.weight)
        assert apart(expected + model.head.bias, got) <= EXACT
    assert 0 < float((kept_by_hand(one, x) == 0).float().mean()) < 1


def test_without_thresholds_and_with_saliencies_of_one_it_is_the_base_net() -> None:
    gated, x = row(), images()
    for gate in gated.gates.values():
        if isinstance(gate, Dynamic):
            nn.init.zeros_(gate.branch.second.weight)
    with torch.no_grad():
        assert torch.equal(gated(x), gated.backbone(x))
        assert torch.equal(gated.opened()(x), gated.backbone(x))


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_after_the_update_as_many_mean_saliencies_reach_the_threshold(share: float) -> None:
    gated, x = row(), images(16)
    with torch.no_grad():
        gate = turned(gated, share, x).gate("one")
        means = gate.branch(x.mean((2, 3))).mean(0)
    assert int((means >= gate.branch.threshold - 1e-12).sum()) == ceil(share * 6)
    fired = (kept_by_hand(gate, x) > 0).double().mean(0)
    again = turned(gated, None, x).gate("one")
    assert torch.allclose(again.score([]) + again.rare, fired), "how often it fires, counted by hand"


def test_the_share_falls_as_a_cosine_and_the_first_epoch_closes_nothing() -> None:
    gated, epochs, target = row(), 5, 0.4
    aim = Aim(Budget("0.5x", Macs(gated.axes)), epochs, schedules["cosine"])
    mover, gate = SaliencyThresholds(gated, aim, ratio=target), gated.gate("two")
    for epoch in range(epochs):
        gated.train()
        with torch.no_grad():
            gated(images(16))
        means = (gate.total / gate.images).sort(descending=True).values
        mover.after_epoch(epoch)
        share = (1 - target) / 2 * cos(pi * (epoch + 1) / epochs) + (1 + target) / 2
        expected = -1e4 if epoch == 0 else float(means[ceil(share * 8 - 1e-9) - 1])
        assert float(gate.branch.threshold) == pytest.approx(expected)
        assert not gate.images


def test_of_every_width_as_many_units_stay_open_as_are_asked_for() -> None:
    for size in range(1, 129):
        gate = Dynamic(size, [9])
        gate.face(1)
        for left in range(1, size + 1):
            gate.total.copy_(torch.arange(size, 0, -1))
            gate.images.fill_(1)
            gate.turn(1 - (1 - left / size) * 1.0)  # as the mover has it, of an epoch that has closed all that goes
            assert float(gate.branch.threshold) == size - left + 1, (left, size)


def test_thresholds_follow_the_budget_where_no_ratio_is_given() -> None:
    gated = row()
    mover = SaliencyThresholds(gated, Aim(Budget("0.5x", Macs(gated.axes)), 2, schedules["cosine"]))
    assert mover.share.keys() == {"one", "two"}
    assert all(0 < share < 1 for share in mover.share.values())
    with pytest.raises(SpaceError, match="dynamic"):
        SaliencyThresholds(GatedModel(Row(), gated.axes), mover.aim)


# the penalty


def test_a_penalty_from_its_equation() -> None:
    gated, x = row().train(), images()
    logits, targets = gated(x), torch.tensor([0, 1, 1, 0])
    penalty = ManifoldPenalty(sparsity=0.3, similarity=0.7, easy=1.2).double()
    penalty.hear(Said(logits), targets)
    got, expected = penalty(gated), 0.0
    losses = F.cross_entropy(logits.detach(), targets, reduction="none").tolist()
    limit = 1.2 * sum(losses) / 4
    weights = [max(0.0, (limit - loss) / limit) for loss in losses]
    for gate in (gated.gate("one"), gated.gate("two")):
        saliency, features = gate.looked.saliency.tolist(), gate.looked.features.tolist()
        expected += 0.3 * sum(w * sum(line) / len(line) for w, line in zip(weights, saliency, strict=True)) / 4
        for n in range(4):
            for m in range(4):
                expected += 0.7 * (cosine(features[n], features[m]) - cosine(saliency[n], saliency[m])) ** 2 / 16
    assert float(got.detach()) == pytest.approx(expected, rel=1e-9)
    got.backward()
    assert all(bool(gated.gate(name).branch.second.bias.grad.abs().max() > 0) for name in ("one", "two"))


def cosine(one: list[float], other: list[float]) -> float:
    norms = [sum(value**2 for value in each) ** 0.5 for each in (one, other)]
    return sum(a * b for a, b in zip(one, other, strict=True)) / (norms[0] * norms[1])


def test_hard_images_pay_nothing_and_perfect_ones_all() -> None:
    limit = torch.tensor(0.5 * 1.6)
    assert ease(torch.tensor([0.0, 0.4, 0.8, 2.0]), limit, 1.0).tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert ease(torch.tensor([0.0, 1.0]), torch.tensor(0.0), 1.0).tolist() == [0.0, 0.0], "nothing is known yet"
    penalty, gated = ManifoldPenalty(similarity=0.0).double(), row().train()
    logits = gated(images(2))
    penalty.usual.fill_(1e-3)
    penalty.epoch.fill_(1)
    penalty.hear(Said(logits), torch.tensor([0, 1]))
    assert float(penalty(gated).detach()) == 0.0


def test_likeness_does_not_see_the_length_of_a_row() -> None:
    features, saliency = images(5).flatten(1)[:, :7], torch.rand(5, 4, dtype=torch.float64)
    lengths = 10 * torch.rand(5, 1, dtype=torch.float64) + 0.1
    assert float(unlike(features, 3 * features)) <= 1e-28
    assert float(unlike(features, saliency)) > 1e-3
    assert float(unlike(lengths * features, saliency)) == pytest.approx(float(unlike(features, saliency)), rel=1e-12)
    assert float(unlike(features, lengths * saliency)) == pytest.approx(float(unlike(features, saliency)), rel=1e-12)


def test_the_usual_loss_is_that_of_the_epoch_before() -> None:
    penalty = ManifoldPenalty()
    for number, said in enumerate([4.0, 2.0, 0.0, 1.0]):
        penalty.advance(number / 2)
        logits = torch.tensor([[0.0, said]])
        penalty.hear(Said(logits), torch.tensor([0]))
    before = [float(F.cross_entropy(torch.tensor([[0.0, said]]), torch.tensor([0]))) for said in (4.0, 2.0)]
    assert float(penalty.usual) == pytest.approx(sum(before) / 2)
    again = ManifoldPenalty()
    again.load_state_dict(penalty.state_dict())
    for each in (penalty, again):
        each.advance(2.0)
    assert float(again.usual) == float(penalty.usual) != pytest.approx(sum(before) / 2)


# what is released


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_what_skips_computes_what_was_gated(share: float) -> None:
    gated, x = turned(row(), share, images(8)), images(5)
    model = skipping(gated)
    assert isinstance(model.one, Skipping)
    with torch.no_grad():
        expected = gated(x)
        assert apart(expected, model(x)) <= EXACT
        assert apart(expected, torch.cat([model(image[None]) for image in x])) <= EXACT
    assert skipping_error(gated, model, x) <= EXACT


def test_where_an_image_calls_for_nothing_nothing_is_passed_on() -> None:
    gated, x = row(), images(2)
    for name in ("one", "two"):
        nn.init.constant_(gated.gate(name).branch.second.bias, -1e3)
    model = skipping(gated)
    with torch.no_grad():
        blank = F.linear(model.one.convolutions[-1].bias, model.head.weight, model.head.bias)
        for image in x:
            assert apart(blank[None], model(image[None])) <= EXACT


def test_what_is_skipped_is_not_computed() -> None:
    gated, x = turned(row(), 0.4, images(8)), images(3)
    model = skipping(gated)
    for image in x:
        with torch.no_grad():
            gated(image[None])
            one, two = (int((gated._board.keep[name][0] != 0).sum()) for name in ("one", "two"))
        branches = 3 * 6 + 6 * 6 + one * 8 + 8 * 8
        convolutions = 64 * 27 * one + 9 * 9 * one * two + 9 * two * 5 + 5 * 2
        assert count(model, image[None]).macs == branches + convolutions


def test_handing_over_changes_no_function_and_makes_units_count_as_much() -> None:
    gated, x = turned(row(), 0.5, images(32)), images(8)
    turned(gated, None, images(32))
    with torch.no_grad():
        expected = gated(x)
        gated.fold()
        assert apart(expected, gated(x)) <= EXACT
        values = gated._board.keep["one"]
    assert float(values[values > 0].mean()) == pytest.approx(1.0, abs=0.2)
    with torch.no_grad():
        again = gated(x)
        gated.fold()
        assert torch.equal(again, gated(x)), "once and for all"


def test_units_that_never_fire_are_removed_as_usual() -> None:
    gated, x = row(), images()
    gate = gated.gate("two")
    with torch.no_grad():
        gate.branch.second.weight[:3], gate.branch.second.bias[:3] = 0.0, -1.0  # closed for every image
    turned(turned(gated, 0.8, images(8)), None, images(8))
    arch = gated.arch()
    assert set(arch.kept["two"]) <= {3, 4, 5, 6, 7}
    again, _ = gated_again(gated, removed(gated, arch))
    with torch.no_grad():
        model = skipping(again.eval())
        assert apart(torch.cat([gated(image[None]) for image in x]), torch.cat([model(i[None]) for i in x])) <= EXACT
        small = derive(gated.backbone, gated.axes, arch)
        assert apart(gated.fixed(arch)(x), small(x)) <= EXACT


def test_an_artefact_that_skips_loads_without_gates(tmp_path: Path) -> None:
    net = traced("test_resnet")
    model, space = net.fresh(), SearchSpace.read("inside_blocks", net.axes)
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts residual branches at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    gated = turned(GatedModel(model, space, "dynamic"), 0.4, torch.randn(8, 3, 32, 32))
    small, x = skipping(gated), torch.randn(4, 3, 32, 32)
    assert skipping_error(gated, small, x) <= EXACT
    save(small, tmp_path / "dynamic", origin=("test_resnet", {"num_classes": 10}))
    loaded = load(tmp_path / "dynamic")
    with torch.no_grad():
        assert all(torch.equal(loaded(image[None]), small(image[None])) for image in x)
        assert apart(small(x), torch.cat([small(image[None]) for image in x])) <= 1e-4
    assert len({count(loaded, image[None]).macs for image in x}) > 1, "images call for different numbers of channels"
    assert loaded.forward_features(x).shape[1] == loaded.num_features


def test_what_cannot_be_skipped_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    axes = trace(model, torch.randn(2, 3))
    gated = GatedModel(model, axes, "dynamic").eval()
    with pytest.raises(SpaceError, match="does not lie between two plain convolutions"):
        skipping(gated)
    with pytest.raises(SpaceError, match="no gate looks at images"):
        skipping(GatedModel(model, axes))
