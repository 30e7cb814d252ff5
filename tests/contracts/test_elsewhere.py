"""Numbers and gradients on a second device: criteria, training and derived models are, to the bit, those of the CPU."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from elsewhere import There, elsewhere, here, module_there
from torch import Tensor, nn
from users import Recurrent
from zoo import User

from nas_prune.costs import Budget, Limits, Macs, Memory
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import laid_out
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

SPACES = ("channels", "operations", "stripes")
BRIEF = {"scop": {"epochs": 2}}  # options of criteria that take seconds otherwise
Result = dict[str, Tensor]


class Small(User):
    """A residual sum, norms with statistics and over an axis, and a name that the space of operations looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GroupNorm(2, 16)
        self.layer1 = nn.ModuleDict({"conv1": nn.Conv2d(16, 16, 3, padding=1, bias=False)})
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.inner(x + self.layer1["conv1"](x)).mean((2, 3)))


@cache
def laid(space: str) -> tuple[nn.Module, SearchSpace]:
    """A module that has the choices of a space, and the space."""
    model = Small().eval()
    return model, laid_out(model, model.example(), space)


def images() -> Tensor:
    """The same ones every time."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def both(gated: GatedModel, of: Callable[[GatedModel, Tensor, Tensor], Result]) -> tuple[Result, Result]:
    """What comes of a gated model on the CPU, and elsewhere."""
    other, labels = module_there(copy.deepcopy(gated)), torch.arange(4)
    torch.manual_seed(0)
    expected = of(gated, images(), labels)
    torch.manual_seed(0)
    with elsewhere():
        got = of(other, There(images()), There(labels))
    brought = {name: here(each.detach()) for name, each in got.items()}
    return {name: each.detach() for name, each in expected.items()}, brought


def same(expected: Result, got: Result) -> bool:
    """Whether all numbers are."""
    return expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("criterion", criteria)
def test_criteria_score_alike(criterion: str, space: str) -> None:
    model, axes = laid(space)
    gated = GatedModel(copy.deepcopy(model), axes)
    assert same(*both(gated, lambda each, x, y: criteria[criterion](each, [(x, y)], **BRIEF.get(criterion, {}))))


def trained(gated: GatedModel, x: Tensor, y: Tensor) -> Result:
    """Three steps with a penalty and two optimizers; then what everything is."""
    limits = [Budget("0.5x", Macs(gated.axes)), Budget("0.5x", Memory(gated.axes))]
    penalty = BudgetPenalty(Budget("1", Limits(limits)))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(gated.backbone.parameters(), 0.05, momentum=0.9)]
    if list(gated.gates.parameters()):
        optimizers.append(torch.optim.Adam(gated.gates.parameters(), 1e-2))
    for step in range(3):
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (nn.functional.cross_entropy(gated.train()(x), y) + penalty(gated)).backward()
        for optimizer in optimizers:
            optimizer.step()
    gated.fold()
    return gated.scores() | gated.state_dict()


@pytest.mark.parametrize("gate", gates)
def test_gates_learn_alike(gate: str) -> None:
    model, axes = laid("stripes" if gate == "skeleton" else "operations")
    assert same(*both(GatedModel(copy.deepcopy(model), axes, gate), trained))


@pytest.mark.parametrize("space", SPACES)
def test_a_derived_model_is_elsewhere_and_computes_alike(space: str) -> None:
    model, axes = laid(space)
    arch = Arch.random(axes.axes, generator=torch.Generator().manual_seed(0))

    def derived(gated: GatedModel, x: Tensor, _: Tensor) -> Result:
        small = derive(gated.backbone, axes.axes, arch)
        assert {each.device for each in small.state_dict().values()} == {x.device}
        return {"small": small(x), "gated": gated.fixed(arch)(x)}

    assert same(*both(GatedModel(copy.deepcopy(model), axes).eval(), derived))


def test_a_recurrent_net_computes_alike() -> None:
    model = Recurrent()
    gated = GatedModel(model, trace(model, model.example()), "sigmoid")
    x = model.example()
    expected = gated(x).detach()
    with elsewhere():
        got = here(module_there(gated)(There(x)).detach())
    assert torch.allclose(got, expected, atol=1e-6), "torch has no LSTM for this device, and puts one together"


def test_a_tensor_that_is_left_behind_is_seen() -> None:
    with elsewhere(), pytest.raises(RuntimeError, match="two devices"):
        There(torch.ones(3)) + torch.ones(3)
    with pytest.raises(RuntimeError, match="not supported"):
        There(torch.ones(3)).numpy()


class Positions(User):
    """A width that meets numbers made on the device of the input, with which they are captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + torch.arange(6, device=x.device, dtype=x.dtype)
        return self.head(self.second(x).relu().mean((2, 3)))


def test_what_was_traced_on_a_device_is_verified_on_the_cpu() -> None:
    model = Positions()
    x = model.example()
    axes = trace(copy.deepcopy(model).to("meta"), x.to("meta"))
    assert list(axes.free) == list(trace(model, x).free)
    assert verify(model, axes, Arch.random(axes), x).max_rel_error <= 1e-9
