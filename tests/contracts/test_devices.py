"""Forward on a GPU, without one: every registered part runs on a fake device, where a tensor left behind is an error.

Parts that move no numbers between devices say so by running here; what needs numbers or gradients of a GPU is run by
``benchmarks/gpu.sh`` on a real one.
"""

import copy
from functools import cache

import pytest
import timm
import torch
from descriptions import DESCRIPTIONS
from fake_gpu import FakeGpu
from torch import Tensor, nn
from users import READERS, Recurrent
from zoo import USERS, User, build, few, traced

from nas_prune.costs import Budget, Limits, Predictor, costs, predictors
from nas_prune.derivation.replace import laid_out
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.penalties import penalties
from nas_prune.ops import StripeConv, described, operations
from nas_prune.ops import build as built
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.masked import FILLS, FORMS, WEIGHTS
from nas_prune.tracing.space import SearchSpace

SPACES = {
    "everything": "test_vit",
    "stripes": "test_resnet",
    "operations": "test_resnet",
    "darts_small": "nas_prune_cells",
}
FAST = ("everything", "stripes", "operations")  # the spaces but the one that takes as long as all others
ONE_EACH = [
    *((gate, "everything") for gate in ("mask", "weight", "hard_concrete")),
    ("skeleton", "stripes"),
    ("shapley", FAST[2]),
]
COUNTS = [name for name, kind in costs.items() if not issubclass(kind, Predictor)]
OPTIONS = {  # of penalties that cannot do without, or look at numbers otherwise
    "structural": {"layers": {"*": {"kernel": 1}}},
    "growing": {"pick_ceiling": 1.0},
}


@cache
def laid(space: str) -> tuple[nn.Module, SearchSpace, Tensor]:
    """A backbone for each sort of axis, and its images."""
    images = torch.randn(2, 3, 32, 32)
    cells = {"space": space, "layers": 3, "channels": 4, "num_classes": 10}
    model = timm.create_model(SPACES[space], **cells) if space == "darts_small" else build(SPACES[space])
    return model, laid_out(model, images, space), images


def on_gpu(space: str, gate: str) -> tuple[FakeGpu, GatedModel, Tensor]:
    """A gated backbone on the fake device, and images there."""
    gpu, (model, axes, images) = FakeGpu(), laid(space)
    gated = GatedModel(copy.deepcopy(model), axes, gate)
    return gpu, gpu.module(gated), gpu.tensor(images)


def away(tensors: object) -> list[str]:
    """Those that are not on the device."""
    named = tensors if isinstance(tensors, dict) else {"output": tensors}
    return [name for name, each in named.items() if each.device.type != "cuda"]


class RootMeanSquare(User):
    """A norm that no other module here has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(3, 8), nn.RMSNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x.mean((2, 3)))))


MASKED = (*USERS, *READERS, RootMeanSquare)


def run(gated: GatedModel, images: Tensor) -> dict[str, Tensor]:
    """What gates do in a search: train, evaluate, fix an architecture, score, fold. Where the results are."""
    found = {"trained": gated.train()(images)}
    found |= gated.sizes()
    found |= {"evaluated": gated.eval()(images), "fixed": gated.fixed(Arch.random(gated.axes))(images)}
    gated.fold()
    return found | gated.scores() | gated.gate_values()


@pytest.mark.parametrize(("gate", "space"), few([(gate, space) for gate in gates for space in SPACES], ONE_EACH))
def test_gates_stay_on_the_device(gate: str, space: str) -> None:
    gpu, gated, images = on_gpu(space, gate)
    with gpu.computing():
        assert away(run(gated, images)) == []


@cache
def masked(user: type[User]) -> tuple[User, Axes]:
    """A module with the axes of it."""
    model = user()
    return model, trace(model, model.example())


@pytest.mark.parametrize("user", few([each for each in MASKED if each is not Recurrent], MASKED[::3]))  # nor cuDNN's
def test_masked_operations_stay_on_the_device(user: type[User]) -> None:
    gpu, (model, axes) = FakeGpu(), masked(user)
    gated = GatedModel(copy.deepcopy(model), axes, "sigmoid")
    gpu.module(gated)
    images = gpu.tensor(model.example())
    with gpu.computing():
        assert away(run(gated, images)) == []


def test_every_masked_operation_is_among_them() -> None:
    walks = [laid(space)[1].axes.walk for space in FAST] + [masked(user)[1].walk for user in MASKED]
    walks.append(traced("resnetv2_standardized").axes.walk)
    assert {site.how for walk in walks for site in walk.sites} == {*FORMS, *FILLS, *WEIGHTS}


def fits(name: str, gated: GatedModel) -> bool:
    """Whether a penalty has something to look at: stripes, gates that look at images, weights that write an axis."""
    wanted = {"skeleton": bool(gated.axes.stripes), "manifold": False, "growing": any(gated.writers.values())}
    return wanted.get(name, True)


@pytest.mark.parametrize("space", few(SPACES, FAST[:2]))
def test_penalties_stay_on_the_device(space: str) -> None:
    axes = laid(space)[1].axes
    limits = [Budget("0.5x", costs[name](axes)) for name in COUNTS]
    gpu, gated, images = on_gpu(space, "skeleton" if axes.stripes else "weight")
    terms = {
        f"{name} {limit.cost.unit}": penalties[name](limit, **OPTIONS.get(name, {}))
        for name in penalties
        for limit in limits
        if fits(name, gated)
    }
    for limit in limits:
        gpu.part(limit.cost)
    with gpu.computing():
        gated.train()(images)
        assert away({name: term(gated) for name, term in terms.items()}) == []


@pytest.mark.parametrize("space", few(SPACES, FAST))
def test_costs_stay_where_the_sizes_are(space: str) -> None:
    axes, gpu = laid(space)[1].axes, FakeGpu()
    counted = {name: costs[name](axes) for name in COUNTS}
    learned = {name: make(axes, 10.0, None) for name, make in predictors.items()}
    limits = Limits([Budget("0.5x", cost) for cost in (counted | learned).values()])
    sizes = {name: gpu.tensor(torch.tensor(float(axis.size))) for name, axis in axes.free.items()}
    known = {name: gpu.part(cost) for name, cost in counted.items()}
    known |= {name: gpu.module(predictor) for name, predictor in learned.items()}
    with gpu.computing():
        assert away({name: cost(sizes) for name, cost in known.items()}) == []
        assert away(limits(sizes)) == []
        assert away({name: cost({}) for name, cost in learned.items()}) == []


def test_operations_stay_on_the_device() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    alive = torch.rand(8, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    stripes = {f"stripes {form}": described(StripeConv.of(conv, alive, form)) for form in ("dense", "shifted")}
    simple = {name: {"operation": name} for name in ("skip", "zero")}
    known = DESCRIPTIONS | stripes | simple
    assert {str(each["operation"]) for each in known.values()} == set(operations)
    for name, description in known.items():
        gpu = FakeGpu()
        operation = gpu.module(built(description))
        images = gpu.tensor(torch.randn(2, description.get("channels", description.get("in_channels", 8)), 9, 8))
        with gpu.computing():
            assert away({name: operation.train()(images)}) == []
            assert away({name: operation.eval()(images)}) == []
            operation.inherit(operation)


def test_a_tensor_that_is_left_behind_is_seen() -> None:
    class Left(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.ones(x.shape[-1])

    gpu = FakeGpu()
    images = gpu.tensor(torch.randn(2, 3))
    with gpu.computing(), pytest.raises(Exception, match="device"):
        Left()(images)
