"""Provable filter pruning: shares beside a naive loop, draws that are right on average, one error for all layers."""

import copy
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nas_prune.base.errors import BudgetError, DataError
from nas_prune.costs import Macs
from nas_prune.derivation.derive import derive, edit
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria.of_features.sensitivity import largest_shares, sensitivity
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.selectors import Decision, Question
from nas_prune.methods.selectors.guarantee import measured, promised
from nas_prune.methods.selectors.sampling import bound, distinct, draws, reweighted, sampling
from nas_prune.tracing.arch import Arch

IDLE = 2  # a unit of ``first`` that nothing reads


class Net(nn.Module):
    """A residual sum, which two layers read, a concatenation with what is negative at times, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3)
        self.third, self.head = nn.Conv2d(10, 6, 1, stride=2), nn.Linear(6, 4)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``second``, ``third`` and ``head`` read."""
        first = self.norm(self.first(x)).relu()
        both = torch.cat([first[..., 1:-1, 1:-1], self.second(first)], 1)
        return first, both, self.third(both).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x)[2])


@cache
def whole() -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """The network above in float64, one of its units idle, and two batches."""
    generator = torch.Generator().manual_seed(3)
    model = Net().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        model.second.weight[:, IDLE] = 0
        model.third.weight[:, IDLE] = 0
    draw = [torch.randn(size, 3, 8, 7, generator=generator).double() for size in (3, 2)]
    return GatedModel(model, trace(model, draw[0])), [(x, torch.zeros(len(x)).long()) for x in draw]


def net() -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """A copy of it."""
    return copy.deepcopy(whole())


@cache
def scored() -> dict[str, Tensor]:
    """Its sensitivities."""
    return sensitivity(*whole())


def question(limit: float = 0.6, seed: int = 0) -> Question:
    """What stays of it within a share of its multiply-adds?"""
    gated, batches = net()
    cost = Macs(gated.axes)
    return Question(scored(), cost, limit * float(cost({})), gated.space, gated=gated, batches=batches, seed=seed)


def shares_of(layer: nn.Module, x: Tensor) -> list[float]:
    """By hand: the largest share of each entry, of all images, places, outputs, taps, signs of weights and inputs."""
    weight = layer.weight.detach().flatten(2) if layer.weight.ndim == 4 else layer.weight.detach()[:, :, None]
    if layer.weight.ndim == 4:
        patches = nn.functional.unfold(x, layer.kernel_size, stride=layer.stride, padding=layer.padding)
        patches = patches.transpose(1, 2).reshape(-1, *weight.shape[1:])
    else:
        patches = x[:, :, None]
    largest = [0.0] * x.shape[1]
    for patch, row, sign, part in product(patches, weight, (1, -1), (1, -1)):
        terms = (sign * row).clamp(min=0) * (part * patch).clamp(min=0)
        if terms.sum() > torch.finfo(torch.float32).eps:
            found = (terms / terms.sum()).amax(1).tolist()
            largest = [max(pair) for pair in zip(largest, found, strict=True)]
    return largest


def test_a_sensitivity_is_the_largest_share_that_a_unit_has_in_any_sum_of_any_layer() -> None:
    gated, batches = net()
    model, images = gated.plain(), torch.cat([x for x, _ in batches])
    with torch.no_grad():
        layers = zip((model.second, model.third, model.head), model.read(images), strict=True)
        second, third, head = (shares_of(layer, x) for layer, x in layers)
    scores = sensitivity(gated, batches)
    first = [max(pair) for pair in zip(second, third[:5], strict=True)]
    assert scores["first"].tolist() == pytest.approx(first)
    assert scores["second"].tolist() == pytest.approx(third[5:])
    assert scores["third"].tolist() == pytest.approx(head)
    assert all(0 <= float(score.min()) <= float(score.max()) <= 1 for score in scores.values())
    assert scores["first"].argmin() == IDLE
    assert scores["first"][IDLE] == 0
    few = sensitivity(gated, batches, images=4)
    assert all(torch.equal(score, few[name]) for name, score in sensitivity(gated, [(images[:4], None)]).items())
    with pytest.raises(DataError, match="at least one batch"):
        sensitivity(gated, [])


def test_sensitivities_follow_their_units() -> None:
    gated, batches = net()
    order = torch.tensor([3, 0, 4, 1, 2])
    model = gated.plain()
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias, *model.norm.state_dict().values()):
            if tensor.ndim:
                tensor.copy_(tensor[order].clone())
        model.second.weight.copy_(model.second.weight[:, order].clone())
        model.third.weight[:, :5] = model.third.weight[:, order].clone()
    other = sensitivity(GatedModel(model, trace(model, batches[0][0])), batches)
    scores = sensitivity(gated, batches)
    assert torch.allclose(other["first"], scores["first"][order])
    assert torch.allclose(other["third"], scores["third"])


def test_shares_of_one_sum_add_up_to_one() -> None:
    found = largest_shares(torch.rand(1, 7).double(), torch.rand(1, 7).double())
    assert float(found.sum()) == pytest.approx(1)


def test_as_many_different_units_are_drawn_as_is_to_be_expected() -> None:
    p = torch.full((16,), 1 / 16).double()
    assert float(distinct(p, 20).sum()) == pytest.approx(16 * (1 - (1 - 1 / 16) ** 20))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(p.expand(5000, -1), 20, replacement=True, generator=generator)
    mean = sum(len(row.unique()) for row in drawn) / len(drawn)
    assert mean == pytest.approx(float(distinct(p, 20).sum()), abs=0.07)  # 4 standard errors
    assert distinct(torch.tensor([0.0, 1.0]), float("inf")).tolist() == [0, 1]


@pytest.mark.parametrize("hybrid", [False, True])
def test_sums_of_drawn_units_are_right_on_average(hybrid: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    s, x = torch.rand(12, generator=generator).double() ** 3, torch.rand(12, generator=generator).double()
    weight, p = torch.rand(3, 12, generator=generator).double(), s / s.sum()
    certain = p >= 1 / 8 if hybrid else p > 1
    assert bool(certain.any()) == hybrid
    drawn = torch.multinomial(p.expand(5000, -1), 8, replacement=True, generator=generator)
    sums = torch.stack([weight @ (reweighted(p, row, certain) * x) for row in drawn])
    error = sums.std(0) / len(drawn) ** 0.5
    assert bool(((sums.mean(0) - weight @ x).abs() < 4 * error + 1e-2).all())
    assert bool((reweighted(p, drawn[0], certain)[certain] == 1).all())


def test_the_bound_is_the_error_that_so_many_draws_allow() -> None:
    for eps in (0.05, 0.8, 30.0):
        assert bound(1000.0, 3 * (6 + 2 * eps) * 1000 / eps**2) == pytest.approx(eps)
        assert bound(1000.0, draws(1000.0, eps)) <= eps * (1 + 1e-12)
    assert draws(1.0, 1e150) == 1


@pytest.mark.parametrize("variant", ["deterministic", "random", "hybrid"])
def test_one_error_leaves_what_is_within_the_limit_and_more_if_it_is_smaller(variant: str) -> None:
    costs = []
    for share in (1.0, 0.8, 0.6, 0.4):
        asked = question(share)
        decision = sampling(asked, variant=variant)
        costs.append(asked.spent(decision.arch.sizes(asked.space.free)))
        assert costs[-1] <= asked.limit
        assert bool(decision.edits) == (variant != "deterministic")
        assert "off by at most" in decision.remark
    assert all(before >= after for before, after in pairwise(costs))
    whole = sampling(question(1.0), variant=variant)
    assert whole.arch.sizes(asked.space.free) == {"first": 4, "second": 5, "third": 6}  # all but the idle unit
    assert IDLE not in whole.arch.kept["first"]
    state = asked.model("test").backbone.state_dict()
    assert all(torch.allclose(value, state[name]) for name, value in whole.edits.items())  # it is as it was
    with pytest.raises(BudgetError, match="smallest one"):
        sampling(question(1e-3), variant=variant)


def test_the_best_units_stay_where_nothing_is_drawn() -> None:
    asked = question(0.5)
    for name, units in sampling(asked).arch.kept.items():
        score = asked.scores[name]  # some share it
        assert sorted(score[list(units)].tolist(), reverse=True) == score.topk(len(units)).values.tolist()


@pytest.mark.parametrize("variant", ["random", "hybrid"])
def test_what_is_derived_computes_what_the_reweighted_model_does(variant: str) -> None:
    asked = question(0.5)
    gated, (x, _) = asked.model("test"), asked.batches[0]
    before = copy.deepcopy(gated.state_dict())
    decision = sampling(asked, variant=variant)
    assert all(torch.equal(value, before[key]) for key, value in gated.state_dict().items())
    small = derive(gated.backbone, gated.axes, decision.arch, edits=decision.edits)
    edit(gated.backbone, decision.edits)
    assert torch.allclose(small(x), gated.fixed(decision.arch)(x), atol=1e-9)


def test_the_error_that_is_measured_is_within_the_bound() -> None:
    asked = question(0.7)
    gated, decision = asked.model("test"), sampling(asked)
    error = measured(gated, asked.batches, decision)
    assert 0 < error <= promised(gated, asked.scores, decision.arch, {}) <= 1
    units = asked.scores["third"].topk(5).indices.tolist()
    alone = Decision(Arch({"third": units}))
    told = promised(gated, asked.scores, alone.arch, {})
    assert told == pytest.approx(float(asked.scores["third"].min()))
    assert measured(gated, asked.batches, alone) <= told
    assert promised(gated, asked.scores, alone.arch, {"third": 3.0}) == 3
    assert measured(gated, [], decision) is None


def test_errors_of_axes_that_a_layer_reads_together_add_up() -> None:
    gated, batches = net()
    weight, scores = gated.plain().third.weight.detach(), scored()
    generator, more = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        factors = {}
        for name in ("first", "second"):
            p = scores[name] / scores[name].sum()
            draws = torch.multinomial(p, 6, replacement=True, generator=generator)
            factors[name] = reweighted(p, draws, torch.zeros(5).bool())
        ones, errors = dict.fromkeys(factors, torch.ones(5).double()), {}
        for names in (["first"], ["second"], ["first", "second"]):
            columns = torch.cat(list((ones | {name: factors[name] for name in names}).values()))
            decision = Decision(Arch(), {"third.weight": weight * columns[:, None, None]})
            errors["+".join(names)] = measured(gated, batches, decision)
        both = errors.pop("first+second")
        assert both <= promised(gated, scores, Arch(), errors) == pytest.approx(sum(errors.values()))
        more += both > 1.02 * max(errors.values())
    assert more > 5, "the larger of the two is no bound"


def test_drawn_and_closed_units_of_a_concatenation_add_up() -> None:
    gated, _ = net()
    arch, scores = Arch({"second": [0, 1, 3, 4]}), scored()
    closed = promised(gated, scores, arch, {})
    assert closed == pytest.approx(float(scores["second"][2]))
    assert promised(gated, scores, arch, {"first": 0.25}) == pytest.approx(0.25 + closed)


class Attention(nn.Module):
    """Three heads, which the last layer reads with all their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), x.shape[1], 3, 3, 4).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_head_that_is_closed_takes_all_its_dimensions_along() -> None:
    torch.manual_seed(0)
    model, x = Attention().double().eval(), torch.randn(2, 6, 4).double()
    gated, batches = GatedModel(model, trace(model, x)), [(x, torch.zeros(2).long())]
    (name,) = (name for name, axis in gated.space.free.items() if axis.kind == "head")
    closed = Arch({name: [0, 2]})
    error = measured(gated, batches, Decision(closed))
    assert 0.1 < error <= promised(gated, sensitivity(gated, batches), closed, {}) <= 1
