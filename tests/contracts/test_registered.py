"""Contracts over every registered cost, predictor, penalty, mover, selector and operation, none of them by name.

What a part needs beside what all parts of its kind are given stands in a table here: one line for a new part that does.
"""

import inspect
from functools import cache
from itertools import pairwise

import pytest
import torch
from descriptions import DESCRIPTIONS
from torch import Tensor, nn
from zoo import Traced, build, traced

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget, CostModel, Macs, Predictor, costs, predictors
from nas_prune.costs.predictors.predictor import dense_sizes
from nas_prune.derivation.derive import derive, edit
from nas_prune.derivation.trace import trace
from nas_prune.methods.compensations import compensations
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, Mover, movers
from nas_prune.methods.penalties import penalties
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import Question, selectors
from nas_prune.ops import Operation, operations
from nas_prune.ops import build as operation_of
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

DENSE_MS, SAMPLES, EPOCHS = 5.0, 24, 3
GATES_OF = {"skeleton": "skeleton", "manifold": "dynamic"}  # penalty -> the gate that it is about, if not for all
MOVES = {"saliency": "dynamic"}  # mover -> the gate that it is about, where that is no mask
OPTIONS = {"structural": {"layers": {"layer*.conv2": {"kernel": 2}}}}  # penalty -> options that have no default
LIKE = {  # operation -> options of its `like` that have no default
    "choice": {
        "candidates": {"wide": {"operation": "convolution"}, "narrow": {"operation": "convolution", "kernel": 1}}
    },
    "structured_sparse_convolution": {"supports": ["full", "centre"]},
}
REPLACING = [name for name, kind in operations.items() if kind.like.__func__ is not Operation.like.__func__]
DESCRIBED = {str(each["operation"]): each for each in DESCRIPTIONS.values()}
TRADING = [name for name in selectors if name not in ("genotype", "fixed_widths")]  # these look at no cost


def seeded() -> torch.Generator:
    """The same random numbers in every test."""
    return torch.Generator().manual_seed(3)


# costs and latency predictors


def fitted(predictor: Predictor) -> Predictor:
    """After a short look at timings of products of widths."""
    shares = 0.1 + 0.9 * torch.rand(SAMPLES, len(predictor.names), generator=seeded())
    ms = DENSE_MS * (0.1 + 0.9 * (shares[:, 1:] * shares[:, :-1]).mean(1))
    takes = inspect.signature(predictor.fit).parameters
    predictor.fit(shares, ms, generator=seeded(), **({"steps": 60} if "steps" in takes else {}))
    return predictor


@cache
def cost_of(kind: str, name: str) -> CostModel:
    """A registered cost of the tiny ResNet; what is learned has been."""
    torch.manual_seed(0)
    axes = traced("test_resnet").axes
    if kind == "predictor":
        return fitted(predictors[name](axes, DENSE_MS, None))
    if issubclass(costs[name], Predictor):
        return fitted(costs[name](dense_sizes(axes), DENSE_MS))
    return costs[name](axes)


every_cost = pytest.mark.parametrize(
    ("kind", "name"), [*(("cost", name) for name in costs), *(("predictor", name) for name in predictors)]
)


@every_cost
def test_many_costs_are_the_costs_one_by_one(kind: str, name: str) -> None:
    cost, free = cost_of(kind, name), traced("test_resnet").axes.free
    columns = {axis.name: torch.randint(1, axis.size + 1, (5,), generator=seeded()).double() for axis in free.values()}
    rows = [{axis: float(column[row]) for axis, column in columns.items()} for row in range(5)]
    some = dict(list(columns.items())[:2])  # the other axes are dense
    with torch.no_grad():
        for asked in (columns, some):
            alone = [float(cost({axis: row[axis] for axis in asked})) for row in rows]
            assert cost.many(asked).tolist() == pytest.approx(alone, rel=1e-5)  # predictors compute in float32


@every_cost
def test_what_is_left_out_is_dense_and_the_dense_network_costs_most(kind: str, name: str) -> None:
    cost, axes = cost_of(kind, name), traced("test_resnet").axes
    dense = {axis.name: axis.size for axis in axes.free.values()}
    with torch.no_grad():
        assert cost({}).shape == ()
        assert float(cost({})) == pytest.approx(float(cost(dense)), rel=1e-6)
        assert 0 < float(cost(SearchSpace.all(axes).minimum)) < float(cost({}))
    assert cost.unit


@every_cost
def test_a_cost_has_a_slope_everywhere(kind: str, name: str) -> None:
    cost, space = cost_of(kind, name), SearchSpace.all(traced("test_resnet").axes)
    for share in (0.0, 0.4, 1.0):
        sizes = {
            axis.name: torch.tensor(space.minimum[axis.name] * (1 - share) + share * axis.size, requires_grad=True)
            for axis in space.free.values()
        }
        slopes = torch.autograd.grad(cost(sizes), list(sizes.values()), allow_unused=True)  # a peak is elsewhere
        found = torch.stack([slope for slope in slopes if slope is not None])
        assert bool(found.isfinite().all())
        assert bool((found != 0).any())


# penalties


@cache
def penalized(gate: str) -> Traced:
    """The tiny ResNet, with stripes among its axes for a gate that is about them."""
    net = traced("test_resnet")
    stripes = gate == "skeleton"
    return Traced(net.model, trace(build("test_resnet"), net.images, stripes=True), net.images) if stripes else net


@pytest.mark.parametrize("name", penalties)
def test_a_penalty_is_a_number_with_gradients_and_a_state(name: str) -> None:
    gate = GATES_OF.get(name, "hard_concrete")
    net = penalized(gate)
    gated = GatedModel(net.fresh(), net.axes, gate)
    budget, options = Budget("0.5x", Macs(net.axes)), OPTIONS.get(name, {})
    penalty, again = (penalties[name](budget, **options) for _ in range(2))
    penalty.begin(gated)
    again.begin(gated)
    for _ in range(2):  # a penalty may go by the steps
        gated(net.images)
        value = penalty(gated)
        assert value.shape == ()
        assert float(value.detach()) >= 0
    value.backward()
    gradients = [each.grad for each in [*gated.parameters(), *penalty.parameters()] if each.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    again.load_state_dict(penalty.state_dict())
    assert torch.equal(again.eval()(gated), penalty.eval()(gated))


# movers


def moved(name: str) -> tuple[GatedModel, Mover]:
    """A mover and its model, whose space is widths alone."""
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), MOVES.get(name, "mask"))
    return gated, movers[name](gated, Aim(Budget("0.5x", Macs(net.axes)), EPOCHS, schedules["ghfp"]))


def epoch_of(gated: GatedModel, mover: Mover, epoch: int) -> None:
    """An epoch of steps to weights that follow from the epoch alone, so that every unit may be the least."""
    generator = torch.Generator().manual_seed(epoch)
    mover.begin_epoch(epoch)
    for _ in range(2):
        with torch.no_grad():
            for parameter in gated.backbone.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        mover.after_step()
    mover.after_epoch(epoch)


@pytest.mark.parametrize("name", movers)
def test_a_mover_leaves_a_network_of_fewer_and_fewer_units(name: str) -> None:
    gated, mover = moved(name)
    left = [Arch.dense(gated.space.free)]
    for epoch in range(EPOCHS):
        epoch_of(gated, mover, epoch)
        mover.left().check(gated.axes)
        left.append(Arch({**Arch.dense(gated.space.free).kept, **mover.left().kept}))
    assert all(bool(value.isfinite().all()) for value in gated.state_dict().values())
    assert all(
        set(now.kept[axis]) <= set(units) for before, now in pairwise(left) for axis, units in before.kept.items()
    )


@pytest.mark.parametrize("name", movers)
def test_a_mover_that_is_stopped_goes_on_to_the_same_end(name: str) -> None:
    gated, mover = moved(name)
    epoch_of(gated, mover, 0)
    later, again = moved(name)
    later.load_state_dict(gated.state_dict())
    again.load_state_dict(mover.state_dict())
    for epoch in range(1, EPOCHS):
        epoch_of(gated, mover, epoch)
        epoch_of(later, again, epoch)
    for first, second in ((gated, later), (mover, again)):
        assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert mover.left() == again.left()


# selectors


@pytest.mark.parametrize("name", TRADING)
def test_a_selector_answers_a_question_and_leaves_it_as_it_was(name: str) -> None:
    net = traced("test_resnet")
    space = SearchSpace.read("channels", net.axes)  # one that all of them can take
    gated = GatedModel(net.fresh(), space, "mask").eval()
    cost = Macs(net.axes)
    scores = {axis.name: torch.randn(axis.size, generator=seeded()) for axis in space.free.values()}
    batches = [(net.images, torch.arange(2))]
    question = Question(scores, cost, 0.5 * float(cost({})), space, gated=gated, batches=batches)
    before = {key: value.clone() for key, value in gated.state_dict().items()}
    asked = {axis: score.clone() for axis, score in scores.items()}
    decision = selectors[name](question)
    decision.arch.check(net.axes)
    sizes = decision.arch.sizes(space.free)
    assert question.spent(sizes) <= question.limit
    assert all(size >= space.minimum[axis] for axis, size in sizes.items())
    assert all(size % space.free[axis].divisor == 0 for axis, size in sizes.items())
    state = gated.backbone.state_dict()
    assert all(state[key].shape == value.shape for key, value in decision.edits.items())
    again = selectors[name](question)
    assert again.arch == decision.arch
    assert all(torch.equal(value, again.edits[key]) for key, value in decision.edits.items())
    assert all(torch.equal(value, gated.state_dict()[key]) for key, value in before.items())
    assert all(torch.equal(score, scores[axis]) for axis, score in asked.items())


# compensations


@pytest.mark.parametrize("name", compensations)
def test_a_compensation_is_an_edit_of_what_stays_and_the_model_is_left_as_it_was(name: str) -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh().double(), net.axes, "mask")
    arch = Arch({axis.name: range(axis.size // 2 or index % 2) for index, axis in enumerate(net.axes.free.values())})
    before = {key: value.clone() for key, value in gated.state_dict().items()}
    images = net.images.double()
    edits = compensations[name](gated, arch, [(images, torch.arange(2))])
    assert all(torch.equal(value, before[key]) for key, value in gated.state_dict().items())
    assert gated.training
    state = gated.backbone.state_dict()
    assert edits
    assert all((state[key].shape, state[key].dtype) == (value.shape, value.dtype) for key, value in edits.items())
    small = derive(gated.backbone, net.axes, arch, edits=edits)
    edit(gated.backbone, edits)
    outputs = (model.eval()(images) for model in (small, gated.fixed(arch).gated))
    with torch.no_grad(), gated.fixed(arch):
        assert torch.allclose(*outputs, atol=1e-9)


# operations


def learns(operation: nn.Module, x: Tensor) -> bool:
    """Whether finite gradients reach its input and all that it learns."""
    operation(x).square().sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in operation.parameters())]
    return all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REPLACING)
def test_an_operation_fits_where_the_module_stood(name: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1).to(dtype)
    x = torch.randn(2, 8, 9, 8, dtype=dtype, requires_grad=True)
    operation = operations[name].like(layer, **LIKE.get(name, {}))
    assert operation.training == layer.training
    assert not operations[name].like(layer.eval(), **LIKE.get(name, {})).training
    assert (operation(x).shape, operation(x).dtype) == (layer(x).shape, dtype)
    assert learns(operation, x)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_an_operation_of_plain_data_learns(name: str) -> None:
    channels = DESCRIPTIONS[name].get("channels", 8)
    assert learns(operation_of(DESCRIPTIONS[name]), torch.randn(2, channels, 9, 8, requires_grad=True))


@pytest.mark.parametrize("name", operations)
def test_an_operation_refuses_what_it_does_not_know(name: str) -> None:
    with pytest.raises(SpaceError, match="nonsense"):
        operation_of({"operation": name, **DESCRIBED.get(name, {}), "nonsense": 3})
