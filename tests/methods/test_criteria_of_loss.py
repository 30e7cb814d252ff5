"""Criteria that follow the loss, or a flow, through single weights (SNIP, GraSP, SynFlow, Hessian), by naive loops."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from nas_prune.base.errors import DataError, DivergedError, SpaceError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.space import SearchSpace

OF_LOSS, STEP, TEMPERATURE = ("snip", "grasp", "hessian"), 1e-4, 2.0
Batch = tuple[Tensor, Tensor]


class Convolutions(nn.Module):
    """Two widths between images and logits; smooth, so that differences are derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 3, 2, bias=False), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(x)).mean((2, 3)))


def convolutions() -> tuple[GatedModel, list[Batch]]:
    """The network above in float64, every number random, and two batches of different sizes."""
    generator = torch.Generator().manual_seed(4)
    model = Convolutions().double().eval()
    model.norm.num_batches_tracked += 1  # its statistics say something
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    draw = [torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64) for size in (3, 2)]
    batches = [(x, torch.randint(4, (len(x),), generator=generator)) for x in draw]
    return GatedModel(model, trace(model, draw[0])), batches


def joined(batches: list[Batch]) -> Batch:
    """All images at once."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def slope_of_each(gated: GatedModel, name: str, of: Callable[[nn.Module], float]) -> Tensor:
    """What a number of the network moves by when each weight of a layer is scaled, from differences."""
    model = gated.plain()
    weight = model.get_submodule(name).weight
    found = torch.zeros_like(weight).flatten()
    for index, value in enumerate(weight.detach().flatten().tolist()):
        ends = []
        for factor in (1 + STEP, 1 - STEP):
            with torch.no_grad():
                weight.view(-1)[index] = factor * value
            ends.append(of(model))
        with torch.no_grad():
            weight.view(-1)[index] = value
        found[index] = (ends[0] - ends[1]) / (2 * STEP)
    return found.reshape(weight.shape).detach()


def test_snip_is_the_share_of_what_the_loss_moves_by() -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(images), labels))

    moved = {name: slope_of_each(gated, name, loss).abs() for name in ("first", "second")}
    total = sum(float(each.sum()) for each in moved.values())
    scores = criteria["snip"](gated, batches)
    for name, each in moved.items():
        assert scores[name].tolist() == pytest.approx((each.flatten(1).sum(1) / total).tolist(), rel=1e-5)
    assert sum(float(score.sum()) for score in scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_statistics_that_come_of_no_batch_are_not_looked_at(name: str) -> None:
    gated, batches = convolutions()
    together = [joined(batches)]
    gated.backbone.norm.num_batches_tracked.zero_()
    scores = criteria[name](gated, together)
    x = gated.backbone.first(together[0][0])
    gated.backbone.norm.num_batches_tracked += 1
    seen = {"running_mean": x.mean((0, 2, 3)), "running_var": x.var((0, 2, 3), correction=0)}
    assert not any(torch.allclose(each, criteria[name](gated, together)[axis]) for axis, each in scores.items())
    for buffer, value in seen.items():
        gated.backbone.norm.get_buffer(buffer).copy_(value.detach())
    if name == "snip":  # at first order; the statistics move with the weights
        like = criteria[name](gated, together)["second"] / criteria[name](gated, together)["second"].sum()
        assert torch.allclose(scores["second"] / scores["second"].sum(), like)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_what_is_inside_of_branches_that_begin_silent_is_told_apart(name: str) -> None:
    model, x = timm.create_model("test_resnet", num_classes=4), torch.randn(6, 3, 32, 32)
    silent = [each for each, value in model.named_parameters() if each.endswith("weight") and not bool(value.any())]
    assert silent
    before = copy.deepcopy(model.state_dict())
    gated = GatedModel(model, SearchSpace.read("channels", trace(model, x)))
    scores = criteria[name](gated, [(x, torch.arange(6) % 4)])
    assert all(len(torch.unique(score)) == len(score) for score in scores.values())
    assert all(torch.equal(value, before[each]) for each, value in model.state_dict().items())


def test_grasp_is_what_the_squared_gradient_moves_by() -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)

    def flow(model: nn.Module) -> float:
        weights = [model.first.weight, model.second.weight, model.head.weight]
        gradients = torch.autograd.grad(F.cross_entropy(model(images) / TEMPERATURE, labels), weights)
        return float(sum(each.square().sum() for each in gradients))

    scores = criteria["grasp"](gated, batches, temperature=TEMPERATURE)
    for name in ("first", "second"):
        by_hand = slope_of_each(gated, name, flow).flatten(1).sum(1) / 2
        assert scores[name].tolist() == pytest.approx(by_hand.tolist(), rel=1e-4, abs=1e-8)
    assert min(float(score.min()) for score in scores.values()) < 0 < max(float(s.max()) for s in scores.values())


def test_hessian_is_half_of_squared_weight_times_mean_squared_gradient() -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)
    scores = criteria["hessian"](gated, batches)
    for name in ("first", "second"):
        expected = torch.zeros_like(scores[name])
        for image, label in zip(images, labels, strict=True):
            model = gated.plain()
            F.cross_entropy(model(image[None]), label[None]).backward()
            weight = model.get_submodule(name).weight
            expected += 0.5 * (weight * weight.grad).square().flatten(1).sum(1).detach() / len(images)
        assert torch.allclose(scores[name], expected, rtol=1e-9)
    first = criteria["hessian"](gated, batches, images=4)
    cut = criteria["hessian"](gated, [(images[:4], labels[:4])])
    assert all(torch.allclose(first[name], cut[name], rtol=1e-12) for name in scores)


@pytest.mark.parametrize("name", OF_LOSS)
def test_neither_the_order_of_images_nor_their_batches_matter(name: str) -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)
    expected = criteria[name](gated, batches)
    for other in ([(images.flip(0), labels.flip(0))], batches * 2):
        scores = criteria[name](gated, other)
        assert all(torch.allclose(scores[axis], score, rtol=1e-8, atol=1e-12) for axis, score in expected.items())


@pytest.mark.parametrize("name", OF_LOSS)
def test_weights_that_are_not_learnt_are_scored_alike_and_stay_so(name: str) -> None:
    gated, batches = convolutions()
    expected = criteria[name](gated, batches)
    gated.requires_grad_(False)
    with torch.no_grad():
        scores = criteria[name](gated, batches)
    assert all(torch.equal(scores[axis], score) for axis, score in expected.items())
    assert not any(parameter.requires_grad for parameter in gated.parameters())


@pytest.mark.parametrize("name", [*OF_LOSS, "synflow"])
def test_a_unit_of_no_weight_scores_0(name: str) -> None:
    gated, batches = convolutions()
    with torch.no_grad():
        gated.backbone.second.weight[1] = 0
    score = criteria[name](gated, batches)["second"]
    assert float(score[1]) == 0
    assert int((score != 0).sum()) == 2


@pytest.mark.parametrize("name", [*OF_LOSS, "synflow", "sosp_h", "sosp_i"])
def test_no_batch_and_no_number_are_errors(name: str) -> None:
    gated, batches = convolutions()
    with pytest.raises(DataError, match="there was none"):
        criteria[name](gated, [])
    with torch.no_grad():
        gated.backbone.head.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="number"):
        criteria[name](gated, batches)


@pytest.mark.parametrize("name", OF_LOSS)
def test_weights_that_are_computed_of_others_are_an_error_that_names_another_criterion(name: str) -> None:
    model, x = nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 4)), torch.randn(2, 5)
    with pytest.raises(SpaceError, match="one that scores gates, such as taylor"):
        criteria[name](GatedModel(model, trace(model, x)), [(x, torch.zeros(2).long())])


def perceptron(*, bias: bool) -> tuple[GatedModel, list[Batch]]:
    """Three layers with ReLU."""
    generator = torch.Generator().manual_seed(6)
    layers = [nn.Linear(5, 6, bias=bias), nn.ReLU(), nn.Linear(6, 7, bias=bias), nn.ReLU(), nn.Linear(7, 3, bias=bias)]
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return GatedModel(model, trace(model, x)), [(x, torch.tensor([0, 1]))]


def test_synflow_is_the_product_of_all_that_flows_through_a_unit() -> None:
    gated, batches = perceptron(bias=False)
    scores, (one, two, three) = criteria["synflow"](gated, batches), gated.backbone[::2]
    for axis, size in (("0", 6), ("2", 7)):
        for unit in range(size):
            flow = 0.0
            for h in range(6):
                for k in range(7):
                    through = (h if axis == "0" else k) == unit
                    into, out = (
                        float(one.weight[h].detach().abs().sum()),
                        float(three.weight[:, k].detach().abs().sum()),
                    )
                    flow += through * into * abs(float(two.weight[k, h].detach())) * out
            assert float(scores[axis][unit]) == pytest.approx(flow, rel=1e-9)


def test_what_flows_through_each_axis_is_the_same_in_all() -> None:
    gated, batches = perceptron(bias=False)
    scores = criteria["synflow"](gated, batches)
    assert float(scores["0"].sum()) == pytest.approx(float(scores["2"].sum()), rel=1e-12)
    assert float(scores["0"].sum()) > 0


def test_synflow_sees_no_signs_no_data_and_no_way_to_write_the_same_function() -> None:
    gated, batches = perceptron(bias=True)
    other = copy.deepcopy(gated)
    with torch.no_grad():
        other.backbone[0].weight[3] *= -4
        other.backbone[0].bias[3] *= 4
        other.backbone[2].weight[:, 3] /= 4
    found = criteria["synflow"](other, [(torch.randn(9, 5), torch.zeros(9).long())])
    expected = criteria["synflow"](gated, batches)
    assert all(torch.allclose(found[axis], score, rtol=1e-12) for axis, score in expected.items())


def test_synflow_takes_statistics_of_batches_out() -> None:
    gated, batches = convolutions()
    expected = criteria["synflow"](gated, batches)
    with torch.no_grad():
        gated.backbone.norm.running_mean += 3
        gated.backbone.norm.running_var *= 5
    assert all(torch.equal(score, expected[name]) for name, score in criteria["synflow"](gated, batches).items())
