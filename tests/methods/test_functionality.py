"""Functionality: pictures of known answer, twins in one group, and one of each pair takes over without a trace."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import BudgetError, DataError
from nas_prune.costs import Macs
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria.of_features.functionality import functionality
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.pictures.filters import Filters, filters
from nas_prune.methods.pictures.groups import groups
from nas_prune.methods.pictures.maximised import maximised
from nas_prune.methods.pictures.merged import merged, moments_of
from nas_prune.methods.pictures.sheet import sheet
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.clusters import clusters, turns, twins_of
from nas_prune.tracing import Axes

Batch = tuple[Tensor, Tensor]
CHANNELS = 6


class Net(nn.Module):
    """Two convolutions with norms, the first 1x1 and linear in the picture; then flat pixels and two linear layers."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        one, two, three = times * CHANNELS, times * 8, times * 10
        self.first, self.norm = nn.Conv2d(3, one, 1), nn.BatchNorm2d(one)
        self.second, self.pool = nn.Conv2d(one, two, 3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(2)
        self.third, self.head = nn.Linear(4 * two, three), nn.Linear(three, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.pool(self.second(x).relu_()).flatten(1)
        return self.head(self.third(x).relu())


def doubled(net: Net) -> Net:
    """Every unit twice, one after the other; what reads them, halved."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, 0)

    def columns(weight: Tensor, pixels: int = 1) -> Tensor:
        return 0.5 * weight.unflatten(1, (-1, pixels)).repeat_interleave(2, 1).flatten(1, 2)

    state = net.state_dict()
    for name, value in state.items():
        if name.startswith(("first", "norm", "second", "third")) and value.ndim:
            state[name] = rows(value)
    state["second.weight"], state["head.weight"] = columns(state["second.weight"]), columns(state["head.weight"])
    state["third.weight"] = columns(state["third.weight"], 4)
    result = Net(2).double().eval()
    result.load_state_dict(state)
    return result


def images() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    draw = [torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64) for size in (6, 3)]
    return [(x, torch.arange(len(x)) % 4) for x in draw]


@cache
def nets() -> tuple[Net, Net, Axes, Axes]:
    """A network, its double, and the axes of both."""
    torch.manual_seed(0)
    net = Net().double()
    for x, _ in 10 * images():
        net(x)
    twice = doubled(net.eval())
    return net, twice, trace(net, images()[0][0][:2]), trace(twice, images()[0][0][:2])


def gated(twice: bool = False) -> GatedModel:
    net, double, axes, wide = nets()
    return GatedModel(copy.deepcopy(double if twice else net), wide if twice else axes)


def asked(model: GatedModel, limit: float) -> Question:
    """What of the network is within so many times its MACs."""
    cost = Macs(model.axes)
    scores = functionality(model, images())
    return Question(scores, cost, limit * float(cost({})), model.space, gated=model, batches=images())


def test_a_contribution_is_the_mean_length_of_the_slope_in_a_map() -> None:
    model = gated()
    net, expected = model.plain(), torch.zeros(8, dtype=torch.float64)
    for x, labels in images():
        for image, label in zip(x, labels, strict=True):
            maps = net.second(net.norm(net.first(image[None])).relu()).detach().requires_grad_()
            logits = net.head(net.third(net.pool(maps.relu()).flatten(1)).relu())
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), maps)
            expected += slope[0].flatten(1).norm(dim=1) / 9
    assert torch.allclose(functionality(model, images())["second"], expected, rtol=1e-9)


def test_a_filter_that_nobody_reads_contributes_nothing() -> None:
    model = gated()
    with torch.no_grad():
        model.backbone.second.weight[:, 2] = 0
    score = functionality(model, images())["first"]
    assert float(score[2]) == 0
    assert int((score > 0).sum()) == CHANNELS - 1
    with pytest.raises(DataError, match="at least one batch"):
        functionality(model, [])


def test_the_picture_of_a_linear_filter_has_its_colours() -> None:
    model = gated()
    pictures = maximised(model.plain(), filters(model)["first"], images()[0][0][0], steps=6)
    weight = model.backbone.first.weight.detach().flatten(1)
    colours = pictures / pictures.norm(dim=1, keepdim=True)
    assert pictures.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * CHANNELS)
    for unit in range(CHANNELS):
        seen = colours[unit][:, pictures[unit].norm(dim=0) > 0]
        assert torch.allclose(seen, (weight[unit] / weight[unit].norm())[:, None].expand_as(seen), atol=1e-9)


def test_more_steps_excite_a_unit_more_than_noise_of_that_length() -> None:
    model = gated()
    net = model.plain()
    pictures = maximised(net, filters(model)["second"], images()[0][0][0])
    noise = torch.nn.functional.normalize(images()[0][0].flatten(1)).reshape(-1, 3, 8, 8)

    def middle(x: Tensor) -> Tensor:
        return net.second(net.norm(net.first(x)).relu())[:, :, 4, 4].detach()

    assert bool((middle(pictures).diagonal() > middle(noise).max(0).values).all())


def test_twins_are_one_group_and_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 3, 4, 4, generator=generator)
    near = centres.repeat(3, 1, 1, 1) + 0.01 * torch.randn(15, 3, 4, 4, generator=generator)
    found = groups(near)
    assert len(found.unique()) == 5
    assert torch.equal(found[:5], found[5:10])
    assert groups(centres[:3]).tolist() == [0, 1, 2]  # too few to be alike
    assert groups(torch.zeros(6, 3, 4, 4)).tolist() == [0] * 6


def test_one_of_each_pair_takes_over_without_a_trace() -> None:
    model = gated(twice=True)
    wide, cost = {"first": CHANNELS, "second": 8, "third": 10}, Macs(model.axes)
    half = float(cost(wide)) / float(cost({}))
    question = asked(model, half + 1e-6)
    decision = clusters(question)
    assert {name: len(decision.arch.kept[name]) for name in wide} == wide
    assert all({unit // 2 for unit in decision.arch.kept[name]} == set(range(half)) for name, half in wide.items())
    x = images()[0][0]
    whole = model.backbone(x)
    small = derive(model.plain(), model.axes, decision.arch, edits=decision.edits)
    bare = derive(model.plain(), model.axes, decision.arch)
    assert torch.allclose(small(x), whole, rtol=1e-9)
    assert not torch.allclose(bare(x), whole, rtol=1e-2)
    assert clusters(question, merge=False).edits == {}
    with pytest.raises(BudgetError):
        clusters(asked(model, half - 1e-3))  # one of every pair stays


def test_what_takes_over_errs_least_of_all_factors() -> None:
    model = gated()
    edits = merged(model, moments_of(model, images()), {"second": {3: 1}})
    net = model.plain()
    read = torch.cat([net.pool(net.second(net.norm(net.first(x)).relu()).relu()) for x, _ in images()]).detach()
    gone, stays = read[:, 3].flatten(), read[:, 1].flatten()
    factor = float(gone @ stays / (stays @ stays))
    assert edits.keys() == {"third.weight"}
    weight, given = (each.detach().unflatten(1, (8, 4)) for each in (net.third.weight, edits["third.weight"]))
    assert torch.allclose(given[:, 1] - weight[:, 1], factor * weight[:, 3], rtol=1e-9)
    assert torch.equal(given[:, 2:], weight[:, 2:])
    errors = [float((gone - (factor + off) * stays).norm()) for off in (0, 0.05, -0.05)]
    assert min(errors) == errors[0]


def test_turns_and_twins_by_hand() -> None:
    group, scores = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([3.0, 1, 2, 9, 8, 0])
    assert turns(group, scores).argsort().tolist() == [1, 4, 2, 5, 0, 3]  # at a third, a half, two thirds; and the last
    pictures = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [1, 0], [1, 1], [1, 0]])[:, :, None, None]
    assert twins_of(pictures, group, (0, 2, 3, 5)) == {1: 0, 4: 3}
    assert twins_of(pictures, group, (2, 3, 5)) == {0: 2, 1: 2, 4: 3}


def test_a_sheet_has_a_picture_of_every_unit() -> None:
    pictures = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = sheet(pictures, torch.tensor([0, 1, 0, 1, 0]), torch.arange(5.0), [0, 1])
    assert (drawn.shape, drawn.dtype) == ((3, 36, 180), torch.uint8)
    assert float(drawn[:, 2:-2, 2:34].float().std()) < float(drawn[:, 2:-2, 74:106].float().std())  # 4 goes, 0 stays


def test_the_selector_needs_a_model_and_images() -> None:
    question = asked(gated(), 0.5)
    given = question.scores, question.cost, question.limit, question.space
    with pytest.raises(DataError, match="give `gated`"):
        clusters(Question(*given))
    with pytest.raises(DataError, match="at least one batch"):
        clusters(Question(*given, gated=question.gated))


def test_what_units_say_is_gathered_from_all_their_rows() -> None:
    tokens, maps = torch.arange(12.0).reshape(1, 2, 6), torch.arange(24.0).reshape(1, 6, 2, 2)
    order = torch.tensor([0, 3, 1, 4])  # two units of two rows each; two more rows are of other axes
    said = Filters("layer", -1, order, 2, 2).of(tokens)
    assert said[0].tolist() == [[0, 6, 3, 9], [1, 7, 4, 10]]
    assert torch.equal(Filters("layer", 1, None, 6, 1).of(maps), maps.flatten(2))
    assert [each.each for each in filters(gated()).values()] == [1, 1, 1]
