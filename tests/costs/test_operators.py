"""Laws of operators: one alone is the node it stands for, a sum of them is learned, a staircase is seen."""

from functools import cache
from math import ceil

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import nnls
from zoo import traced

from nas_prune.base.errors import ArtifactError, CalibrationError
from nas_prune.costs import Macs, Params, count, predictors
from nas_prune.costs.operators.features import MEASURED, Features
from nas_prune.costs.operators.operator import OperatorShape, operators
from nas_prune.costs.operators.staircase import measured_divisors, steps, sweep, sweeps
from nas_prune.costs.operators.table import OperatorTable, measure_table, plan
from nas_prune.costs.operators.timing import Bench, Point, module, time_point
from nas_prune.costs.operators.widths import Products
from nas_prune.costs.predictors.additive import BOUND, AdditivePredictor
from nas_prune.costs.predictors.additive_fit import nonnegative
from nas_prune.costs.timing.conditions import Conditions
from nas_prune.derivation.replace import laid_out
from nas_prune.run.calibration.sampling import sample
from nas_prune.tracing.space import SearchSpace


def widths(axes, shares):
    """Sizes of the axes at these shares (n)."""
    return {name: float(share) * axis.size for (name, axis), share in zip(axes.free.items(), shares, strict=True)}


@cache
def samples(name, number):
    """Shares (b n) as a calibration draws them."""
    space = SearchSpace.all(traced(name).axes)
    rows = [sample(space, index, seed=0, jitter=0.2).sizes(space.free) for index in range(number)]
    return torch.tensor([[row[key] / axis.size for key, axis in space.free.items()] for row in rows])


def planted(axes, terms, shares):
    """Milliseconds (b): the sum over operators of terms(operator, in, out)."""
    found = []
    for row in shares:
        sizes = widths(axes, row)
        total = 0.0
        for o in operators(axes):
            present = np.prod([float(axes.width(bit, sizes)) for bit in o.present])
            total += present * terms(o, axes.width(o.first[0], sizes), axes.width(o.second[-1], sizes))
        found.append(total)
    return torch.tensor(found)


def table_of(axes, law):
    """A table whose milliseconds are law(shape, first, second)."""
    return OperatorTable.from_points((p, law(p.shape, p.first, p.second)) for p in plan(axes, points=8))


def work(shape):
    """Pixels of an operator, in thousands."""
    return 1e-3 * np.prod(shape.space)


def test_an_operator_alone_is_its_node(net):
    walk = net.axes.walk
    nodes = {node.name: node for node in walk.products}
    distinct = {each.shape.key: each for each in operators(net.axes)}
    assert distinct
    for each in distinct.values():
        layer, inputs = module(Point(each.shape, *each.shape.full), batch=2)
        assert layer(*inputs).numel() == nodes[each.node].meta["val"].numel()
        macs = sum(np.prod([term.size for term in terms]) for terms in walk.products[nodes[each.node]])
        assert count(layer, inputs).macs == macs


def test_nothing_that_is_multiplied_is_missed(net):
    assert {each.node for each in operators(net.axes)} == {node.name for node in net.axes.walk.products}


def test_compiled_products_are_the_widths_of_the_terms(net):
    axes = net.axes
    terms = [(term,) for node in axes.walk.products for term in axes.walk.of(node)]
    shares = torch.rand(3, len(axes.free), generator=torch.Generator().manual_seed(0))
    got = Products(axes, list(axes.free), terms)(shares)
    for row, values in zip(shares, got, strict=True):
        sizes = widths(axes, row)
        expected = torch.tensor([axes.width(term, sizes) / term.size for (term,) in terms])
        torch.testing.assert_close(values, expected)


def test_columns_of_multiply_adds_add_up_to_the_macs(net):
    axes = net.axes
    shares = torch.rand(1, len(axes.free), generator=torch.Generator().manual_seed(1))
    features, macs = Features(axes, list(axes.free)), Macs(axes)
    counted = torch.tensor([group.endswith("multiply-adds") for group in features.groups])
    less = (features(torch.ones_like(shares)) - features(shares))[:, counted].sum()  # what is fixed is no column
    assert float(less) == pytest.approx((float(macs({})) - float(macs(widths(axes, shares[0])))) / macs.share, rel=1e-4)


def test_a_table_is_exact_for_products_of_widths():
    axes = traced("resnet18").axes
    table = table_of(axes, lambda _, first, second: 1e-6 * first * second + 1e-3 * second + 0.1)
    shape = next(each.shape for each in operators(axes) if each.module == "layer3.1.conv1")
    first = torch.tensor([16.0, 33.3, 256.0], requires_grad=True)
    got = table.ms(shape, first, torch.tensor([40.0, 100.1, 256.0]))
    torch.testing.assert_close(
        got, 1e-6 * first * torch.tensor([40.0, 100.1, 256.0]) + got.new_tensor([0.14, 0.2001, 0.356])
    )
    (slope,) = torch.autograd.grad(got[1], first)
    assert float(slope[1]) == pytest.approx(1e-6 * 100.1, rel=1e-2)
    assert float(table.ms(shape, 1e4, 1e4)) == float(table.ms(shape, 256, 256))


def test_a_noisy_table_never_decreases():
    draw = np.random.default_rng(0)
    axes = traced("test_resnet").axes
    table = table_of(axes, lambda _, first, second: (first * second + 100) * draw.uniform(0.7, 1.3))
    assert all(bool((grid.ms.diff(dim=side) >= 0).all()) for grid in table.grids.values() for side in (0, 1))


def test_a_table_is_tensors_and_back():
    table = table_of(traced("test_resnet").axes, lambda shape, first, second: work(shape) * first + second)
    again = OperatorTable.from_tensors(table.tensors())
    assert again.grids.keys() == table.grids.keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in table.tensors().items())


def test_a_table_with_holes_is_refused():
    axes = traced("test_resnet").axes
    points = [(point, 1.0) for point in plan(axes) if all(point.shape.movable)]
    with pytest.raises(ArtifactError, match="were not measured"):
        OperatorTable.from_points(points[:-2] + points[-1:])
    with pytest.raises(ArtifactError, match="measure fewer"):
        OperatorTable.from_points((Point(CONVOLUTION, width, 128), 1.0) for width in range(1, 10))
    tensors = OperatorTable.from_points(points).tensors()
    with pytest.raises(ArtifactError, match="lacks"):
        OperatorTable.from_tensors(dict(list(tensors.items())[1:]))
    with pytest.raises(ArtifactError, match="knows no"):
        OperatorTable({}).ms(points[0][0].shape, 1, 1)


def test_operators_are_measured_here():
    axes = traced("test_efficientnet").axes
    keys = [point.key for point in plan(axes, points=2)]
    assert len(set(keys)) == len(keys)
    table = measure_table(axes, Bench(Conditions(threads=1), batch=1, seconds=0.0), points=2)
    assert table.grids.keys() == {each.shape.key for each in operators(axes)}
    assert all(bool((grid.ms > 0).all()) for grid in table.grids.values())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_operators_are_measured_in_the_runtime(runtime):
    pytest.importorskip(runtime)
    bench = Bench(Conditions(runtime, 1), batch=1, seconds=0.0)
    vit, resnet = (operators(traced(name).axes) for name in ("test_vit", "test_resnet"))
    each = {op.shape.kind: op.shape for op in (*vit, *resnet)}
    assert all(time_point(Point(shape, *shape.full), bench) > 0 for shape in each.values())
    assert {"attention", "linear", "convolution"} <= each.keys()


def test_a_planted_sum_is_recovered_without_a_table():
    axes, shares = traced("resnet18").axes, samples("resnet18", 150)
    rates = dict(zip((o.node for o in operators(axes)), torch.linspace(1, 3, 21).tolist(), strict=True))

    def law(o, one, two):
        return work(o.shape) * two * (1e-3 * one * rates[o.node] + 0.2 / rates[o.node])

    ms = planted(axes, law, shares)
    predictor = AdditivePredictor(axes, float(planted(axes, law, torch.ones(1, len(axes.free)))))
    predictor.fit(shares[:100], ms[:100], generator=torch.Generator().manual_seed(0))
    assert predictor.error(shares[100:], ms[100:]).mape <= 0.01
    assert float(predictor({})) == pytest.approx(float(predictor.dense_ms), rel=0.01)
    assert not any(value.requires_grad for value in predictor.parameters())


@pytest.mark.zoo
def test_candidates_that_the_dense_network_lacks_have_a_rate_of_their_own():
    model = timm.create_model("test_resnet").eval()
    space = laid_out(model, torch.randn(1, 3, 64, 64), "operations")
    rows = [sample(space, index, seed=0, jitter=0.2).sizes(space.free) for index in range(120)]

    def law(o, one, two):
        return work(o.shape) * one * two * (5e-3 if "separable_5x5" in o.node else 1e-3)

    dense = {name: axis.dense for name, axis in space.free.items()}
    predictor = AdditivePredictor(space.axes, 1.0)
    ms = planted(space.axes, law, predictor.shares([dense, *rows]))
    predictor = AdditivePredictor(space.axes, float(ms[0]))
    shares = predictor.shares(rows)
    predictor.fit(shares[:90], ms[1:91], generator=torch.Generator().manual_seed(0))
    assert predictor.error(shares[90:], ms[91:]).mape <= 0.02


@pytest.mark.parametrize(("timings", "columns", "tie"), [(40, 200, 0.03), (60, 30, 0.01), (30, 90, 0.3), (20, 1, 0.1)])
def test_least_squares_are_those_of_scipy(timings, columns, tie):
    generator = np.random.default_rng(timings)
    left = generator.random((timings, columns)) * generator.random((timings, 1))
    right = left @ generator.exponential(size=columns) * generator.normal(1, 0.3, timings)
    expected = np.full(columns, right.mean() / columns)
    spread = expected / tie
    found = nonnegative(left, right, expected, spread)
    rows = np.vstack([left, np.diag(1 / spread)])
    other, _ = nnls(rows, np.concatenate([right, expected / spread]))
    assert found == pytest.approx(other, abs=1e-9 * other.max())
    assert (found >= 0).all()


def test_a_table_explains_what_no_polynomial_does():
    axes, shares = traced("resnet18").axes, samples("resnet18", 80)

    def law(shape, one, two):
        return work(shape) * (1 + 0.2 * (sum(shape.full) % 3)) * (one * two) ** 0.3 * (2.0 if two > 40 else 1.0)

    table = table_of(axes, law)
    factors = dict(zip((o.node for o in operators(axes)), torch.linspace(0.8, 1.3, 21).tolist(), strict=True))
    ms = planted(axes, lambda o, one, two: factors[o.node] * float(table.ms(o.shape, one, two)), shares)
    dense = float(
        planted(
            axes, lambda o, *_: factors[o.node] * float(table.ms(o.shape, *o.shape.full)), torch.ones_like(shares[:1])
        )
    )
    error = {}
    for name, given in {"with": table, "without": None}.items():
        predictor = predictors["additive"](axes, dense, given)
        predictor.fit(shares[:50], ms[:50], generator=torch.Generator().manual_seed(0))
        error[name] = predictor.error(shares[50:], ms[50:]).mape
    assert error["with"] <= 0.01
    assert error["with"] < error["without"] / 3


@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_a_planted_block_is_found(block):
    axes, shares = traced("resnet18").axes, samples("resnet18", 120)

    def law(o, one, two):
        whole = [block * ceil(width / block - 1e-3) for width in (one, two)]
        return work(o.shape) * whole[0] * whole[1]

    draw = torch.Generator().manual_seed(0)
    ms = planted(axes, law, shares) * (1 + 0.01 * torch.randn(len(shares), generator=draw))
    predictor = AdditivePredictor(axes, float(planted(axes, law, torch.ones(1, len(axes.free)))))
    predictor.fit(shares[:80], ms[:80], generator=draw)
    assert float(predictor.block) == block
    assert predictor.error(shares[80:], ms[80:]).mape <= 0.02
    points = shares[:3].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(predictor.predict(points).sum(), points)
    assert float(slopes.min()) >= -0.2 * float(slopes.max())
    assert float(slopes.max()) > 0


@pytest.mark.parametrize("cache", [2.0, 8.0])
def test_weights_that_no_cache_holds_are_found(cache):
    """Past the cache a megabyte takes eight times as long: a kink that no polynomial in the sizes has."""
    axes, shares = traced("resnet18").axes, samples("resnet18", 150)

    def law(shares):
        sizes = [widths(axes, row) for row in shares]
        megabytes = torch.tensor([4 * float(Params(axes)(each)) / 2**20 for each in sizes])
        return 1 + megabytes + 7 * (megabytes - cache).clamp_min(0)

    predictor = AdditivePredictor(axes, float(law(torch.ones(1, len(axes.free)))))
    predictor.fit(shares[:100], law(shares[:100]), generator=torch.Generator().manual_seed(0))
    assert predictor.error(shares[100:], law(shares[100:])).mape <= 0.01
    without = len(predictor.coefficients) - 1 - len(predictor.features.memory.caches)
    kinks = dict(zip(predictor.features.memory.caches.tolist(), predictor.coefficients[without:-1], strict=True))
    assert max(kinks, key=lambda size: float(kinks[size])) == cache


def test_a_correction_learns_what_no_sum_is():
    axes, shares = traced("resnet18").axes, samples("resnet18", 150)
    slower = (0.25 * (1 - shares[:, 2])).exp()  # no sum of work is slower for having less to do
    ms = slower * planted(axes, lambda o, one, two: work(o.shape) * one * two, shares)
    dense = float(planted(axes, lambda o, one, two: work(o.shape) * one * two, torch.ones(1, len(axes.free))))
    predictor = AdditivePredictor(axes, dense)
    predictor.fit(shares[:100], ms[:100], generator=torch.Generator().manual_seed(0))
    corrected = predictor.predict(shares)
    error = predictor.error(shares[100:], ms[100:]).mape
    predictor.correction.zero_()
    assert error < 0.9 * predictor.error(shares[100:], ms[100:]).mape
    assert float((corrected / predictor.predict(shares)).log().abs().max()) <= BOUND


@pytest.mark.parametrize("measured", [False, True])
def test_a_fitted_state_is_restored_without_its_table(measured):
    axes, shares = traced("test_resnet").axes, samples("test_resnet", 40)
    table = table_of(axes, lambda shape, one, two: work(shape) * one * two) if measured else None
    predictor = predictors["additive"](axes, 3.0, table)
    predictor.fit(shares, 3 * shares.mean(1), generator=torch.Generator().manual_seed(0))
    again = predictors["additive"](axes, 3.0, None)
    again.load_state_dict(predictor.state_dict())
    assert torch.equal(predictor.predict(shares), again.predict(shares))
    assert MEASURED in predictor.features.groups
    assert bool(predictor.features.ms.any()) == measured


@pytest.mark.parametrize("measured", [False, True])
def test_gradients_are_those_of_finite_differences(measured):
    axes, shares = traced("test_vit").axes, samples("test_vit", 40)
    table = table_of(axes, lambda shape, one, two: work(shape) * one * two) if measured else None
    predictor = predictors["additive"](axes, 3.0, table)
    predictor.fit(shares, 3 * shares.mean(1), generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    points = 0.2 + 0.7 * torch.rand(2, shares.shape[1], dtype=torch.float64, generator=draw)
    predictor.block.fill_(1)  # of whole blocks, the gradient is meant to be that of the shares
    assert torch.autograd.gradcheck(predictor.double().predict, points.requires_grad_())


def test_more_units_never_take_less_time_in_a_sum():
    axes, shares = traced("test_efficientnet").axes, samples("test_efficientnet", 40)
    noise = 1 + 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    predictor = AdditivePredictor(axes, 3.0)
    predictor.fit(shares, 3 * shares.mean(1) * noise, generator=torch.Generator().manual_seed(0))
    predictor.correction.zero_()
    points = torch.rand(200, shares.shape[1], requires_grad=True)
    (slopes,) = torch.autograd.grad(predictor.predict(points).sum(), points)
    assert float(slopes.min()) >= 0


def test_too_few_timings_are_refused():
    axes, shares = traced("test_resnet").axes, samples("test_resnet", 5)
    with pytest.raises(CalibrationError, match="too few"):
        AdditivePredictor(axes, 1.0).fit(shares, shares.mean(1), generator=torch.Generator())


CONVOLUTION = OperatorShape(
    *("convolution", (8, 8), 1, (64, 128), (True, True), 64),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
)


@pytest.mark.parametrize("step", [1, 8, 16, 32])
def test_planted_stairs_are_found(step):
    draw = np.random.default_rng(step)
    swept = [point.second for point in sweep(CONVOLUTION)]
    ms = [(0.3 + 0.01 * step * ceil(width / step)) * (1 + 0.02 * draw.standard_normal()) for width in swept]
    assert steps(swept, ms) == step


def test_too_coarse_a_sweep_is_a_line():
    swept = list(range(64, 129, 16))
    assert steps(swept, [16.0 * ceil(width / 16) for width in swept]) == 1
    assert steps([1, 2, 3], [1.0, 1.0, 3.0]) == 1


def test_an_axis_takes_the_widest_stairs_of_its_writers():
    axes = traced("resnet18").axes
    written = {each.shape.key: each.module for each in operators(axes)}

    def step(point):
        return {"layer3.1.conv1": 16, "layer2.1.conv2": 8}.get(written[point.shape.key], 1)

    own = {key: shape for key, shape in written.items() if shape in ("layer3.1.conv1", "layer2.1.conv2")}
    ms = [(p, 0.3 + 0.01 * step(p) * ceil(p.second / step(p))) for p in sweeps(axes)]
    divisors = measured_divisors(axes, ms)
    assert divisors.keys() == axes.free.keys()
    stairs = {key for key, _ in written.items() if key in own}
    for each in operators(axes):
        if each.shape.key in stairs and each.module in divisors:
            assert divisors[each.module] == (16 if each.module.startswith("layer3") else 8)
    assert divisors["conv1"] == 1
    assert set(measured_divisors(axes, []).values()) == {1}
