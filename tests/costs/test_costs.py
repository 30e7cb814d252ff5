"""Laws of costs: a budget is what it says, a predictor ranks what it has not seen, a smaller model is faster."""

import pytest
import timm
import torch
from torch import nn

from nas_prune.base.errors import RecipeError
from nas_prune.costs import (
    Budget,
    Conditions,
    CostModel,
    LatencyPredictor,
    Macs,
    Params,
    count,
    measure,
    measure_together,
)
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.run.calibration.sampling import sample
from nas_prune.tracing.space import SearchSpace


@pytest.fixture(scope="module")
def space():
    model = timm.create_model("test_resnet", num_classes=10)
    return SearchSpace.read("channels", trace(model, torch.randn(2, 3, 32, 32)))


@pytest.mark.parametrize(("target", "share"), [("0.5x", 0.5), ("1e-1x", 0.1), (" 0.25 x ", 0.25)])
def test_a_relative_budget_is_a_share_of_the_dense_cost(space, target, share):
    macs = Macs(space.axes)
    assert Budget(target, macs).limit == pytest.approx(share * float(macs({})))


@pytest.mark.parametrize(("target", "limit"), [("2G", 2e9), ("300M", 3e8), ("25k", 25e3), ("1234", 1234.0)])
def test_an_absolute_budget_has_a_unit(space, target, limit):
    assert Budget(target, Params(space.axes)).limit == limit


@pytest.mark.parametrize("target", ["fast", "0.5 y", "", "-1x", "4.0ms", "0x"])
def test_a_budget_that_makes_no_sense_is_refused(space, target):
    with pytest.raises(RecipeError):
        Budget(target, Macs(space.axes))


class Counting(CostModel):
    """A cost that counts how often it is asked."""

    unit = "units"
    asked = 0

    def __call__(self, sizes):
        assert not sizes
        self.asked += 1
        return torch.tensor(8.0)


def test_a_budget_asks_for_the_dense_cost_once():
    cost = Counting()
    budget = Budget("0.5x", cost)
    assert [budget.limit, budget.limit, budget.relative, cost.asked] == [4.0, 4.0, True, 1]
    assert not Budget.of(3.0, cost).relative


class Tabled(nn.Module):
    """Adds a table that it computes anew each time, whatever the images are."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("places", torch.randn(5, 3))
        self.register_buffer("waves", torch.randn(3, 6))

    def forward(self, x):
        return self.last(self.first(x + self.places @ self.waves))


def test_multiply_adds_of_a_constant_table_are_counted():
    model, x = Tabled().eval(), torch.randn(1, 5, 6)
    axes = trace(model, x)
    assert list(axes.free) == ["first"]
    assert 2 * float(Macs(axes)({})) == count(model, torch.cat([x, x])).macs == 2 * 5 * (6 * 8 + 8 * 4) + 5 * 3 * 6


WIDTH, TOKENS, HIDDEN = 16, 5, 32
ATTENTION = TOKENS * WIDTH * 3 * WIDTH + 2 * TOKENS * TOKENS * WIDTH + TOKENS * WIDTH * WIDTH
LAYER = ATTENTION + 2 * TOKENS * WIDTH * HIDDEN


class Attended(nn.Module):
    """Self-attention of torch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def layers(number):
    """Torch's transformer layers, which take a fused path in eval mode."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, batch_first=True)
    return nn.TransformerEncoder(layer, number, enable_nested_tensor=False)


@pytest.mark.parametrize(
    ("model", "by_hand"),
    [
        (Attended(), ATTENTION),
        (layers(1).layers[0], LAYER),
        (layers(3), 3 * LAYER),
        (nn.RNN(WIDTH, 8, batch_first=True), TOKENS * 8 * (WIDTH + 8)),
        (nn.GRU(WIDTH, 8, batch_first=True), TOKENS * 3 * 8 * (WIDTH + 8)),
        (nn.LSTM(WIDTH, 8, batch_first=True), TOKENS * 4 * 8 * (WIDTH + 8)),
        (
            nn.LSTM(WIDTH, 8, num_layers=2, bidirectional=True, proj_size=4, batch_first=True),
            2 * TOKENS * (4 * 8 * (WIDTH + 4) + 8 * 4) + 2 * TOKENS * (4 * 8 * (8 + 4) + 8 * 4),
        ),
    ],
    ids=["attention", "transformer layer", "transformer", "RNN", "GRU", "LSTM", "LSTM, projected, both ways"],
)
def test_the_work_of_fused_layers_is_counted(model, by_hand):
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    assert count(model, torch.randn(1, TOKENS, WIDTH)).macs == by_hand
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_the_predictor_learns_a_planted_latency(space):
    full = {name: axis.size for name, axis in space.free.items()}

    def truth(sizes):
        return 2.0 + sum(size / full[name] for name, size in sizes.items())

    sizes = [{n: len(u) for n, u in sample(space, i, seed=0, jitter=0.2).kept.items()} for i in range(120)]
    predictor = LatencyPredictor(full, truth(full), hidden=64)
    shares, ms = predictor.shares(sizes), torch.tensor([truth(each) for each in sizes])
    predictor.fit(shares[:96], ms[:96], steps=600, generator=torch.Generator().manual_seed(0))
    error = predictor.error(shares[96:], ms[96:])
    assert error.mape < 0.03
    assert error.spearman > 0.97
    assert float(predictor({})) == pytest.approx(truth(full), rel=1e-5)


def test_the_predicted_latency_moves_the_sizes(space):
    predictor = LatencyPredictor({name: axis.size for name, axis in space.free.items()}, 3.0, hidden=16)
    sizes = {name: torch.tensor(axis.size / 2, requires_grad=True) for name, axis in space.free.items()}
    predictor(sizes).backward()
    assert all(size.grad is not None and bool(size.grad.isfinite()) for size in sizes.values())


def test_samples_reach_from_the_smallest_to_nearly_dense(space):
    macs = Macs(space.axes)
    share = [float(macs(sample(space, i, seed=0, jitter=0.2).sizes(space.free)) / macs({})) for i in range(200)]
    assert share[0] == min(share)
    assert sum(s < 0.2 for s in share) > 20
    assert sum(s > 0.7 for s in share) > 20


def test_samples_depend_on_seed_and_index_alone(space):
    first = [sample(space, i, seed=3, jitter=0.2) for i in range(5)]
    again = [sample(space, i, seed=3, jitter=0.2) for i in reversed(range(5))]
    assert first == again[::-1]
    assert first[3] != sample(space, 3, seed=4, jitter=0.2)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_smaller_model_measures_faster(space, runtime):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model = timm.create_model("test_resnet", num_classes=10).eval()
    small = derive(model, space.axes, sample(space, 0, seed=0, jitter=0.2))
    images = torch.randn(16, 3, 64, 64)
    times = measure_together({"dense": model, "small": small}, images, conditions=Conditions(runtime, 1), seconds=0.1)
    assert 0 < times["small"].median_ms < times["dense"].median_ms
    assert times["dense"].calls >= 5


def test_measuring_leaves_the_model_as_it_was():
    model = timm.create_model("test_resnet", num_classes=10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, torch.randn(2, 3, 32, 32), seconds=0.01)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
