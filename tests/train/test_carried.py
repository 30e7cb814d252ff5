"""Laws of what goes along when units are removed: each number follows the weight that it is about."""

from collections.abc import Iterable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from zoo import few, traced

from nas_prune.costs import Budget, Macs
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.average import Average
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 10
HOW = {"warmup": 0, "joint": 2, "freeze": 1, "lr": 0.02, "gate_lr": 0.01}


def gated_net(name: str, gate: str, space: str = "widths_and_depth", seed: int = 0) -> GatedModel:
    """A backbone with gates."""
    net = traced(name)
    torch.manual_seed(seed)
    return GatedModel(net.fresh(), SearchSpace.read(space, net.axes), gate)


def known(learner: Learner) -> Iterable[tuple[str, Tensor, list[Tensor]]]:
    """Name and numbers of each parameter, with what its optimizer and the average have in their place."""
    average = dict(learner.chain.average.module.named_parameters())
    state = {each: rows for optimizer in learner.optimizers for each, rows in optimizer.state.items()}
    for name, each in learner.gated.named_parameters():
        yield name, each, [average[name], state[each]["exp_avg"]]


@pytest.mark.parametrize("gate", few(gates, ("weight", "dsa", "dmcp")))
@pytest.mark.parametrize("name", few(("test_vit", "resnet18"), ("test_vit",)))
def test_all_that_is_known_of_a_weight_follows_it_over_removals_that_close_a_branch(name: str, gate: str) -> None:
    learner = Learner(gated_net(name, gate), SearchSettings(optimizer="adamw", lr=0.01), None)
    with torch.no_grad():
        for each in learner.gated.parameters():
            each.normal_()
    learner.chain.average = Average(learner.gated, decay=0.5)
    for optimizer in learner.optimizers:
        for each in (each for group in optimizer.param_groups for each in group["params"]):
            optimizer.state[each] = {"exp_avg": each.detach().clone()}
    branch, *_ = (name for name, axis in learner.gated.space.free.items() if axis.kind == "depth")
    widths = {name: axis.size for name, axis in learner.gated.space.free.items() if axis.kind != "depth"}
    learner.remove(Arch({name: range(0, size, 2) for name, size in widths.items()}))
    assert branch in learner.gated.space.free
    count = len(list(learner.gated.parameters()))
    learner.remove(Arch({branch: []}))
    assert len(list(learner.gated.parameters())) < count, "a branch has gone"
    for path, value, places in known(learner):
        if value.ndim or gate != "dsa":  # whose ratio is that of the units that are left
            assert all(torch.equal(value, place) for place in places), path
        assert value.numel(), path


def test_a_search_of_weight_gates_in_rounds_that_close_branches_ends() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=8)
    gated = gated_net("test_vit", "weight", "everything", seed=1)
    budget = Budget("0.1x", Macs(gated.axes))
    settings = SearchSettings.model_validate(HOW | {"rounds": 3, "once": True, "ema_decay": 0.5})
    arch = search(gated, loader, budget=budget, settings=settings, run=Run(Accelerator(cpu=True)))
    assert float(budget.cost(arch.sizes(gated.space.free))) <= budget.limit


def single(gated: GatedModel) -> Arch:
    """As little of everything as may be left."""
    return Arch({name: range(gated.space.minimum[name]) for name in gated.space.free})


@pytest.mark.parametrize("name", few(("test_resnet", "test_vit"), ("test_resnet",)))
def test_where_nothing_would_be_left_to_gate_nothing_is_removed(name: str) -> None:
    learner = Learner(gated_net(name, "weight", "depth"), SearchSettings(lr=0.01), None)
    learner.chain.average = Average(learner.gated, decay=0.5)
    gated, optimizers, before = learner.gated, learner.optimizers, learner.weights()
    with torch.no_grad():
        for model in learner.models:
            next(model.backbone.parameters()).add_(1.0)  # a compensation, say
    assert not learner.remove(single(gated), before)
    assert (learner.gated, learner.optimizers) == (gated, optimizers)
    assert learner.alive.kept == Arch()
    for expected, found in zip(before, learner.weights(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_search_the_first_round_of_which_leaves_nothing_to_gate_ends_within_its_budget() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=8)
    gated = gated_net("test_resnet", "weight", "depth")
    cost, said = Macs(gated.axes), list[str]()
    least = float(cost(single(gated).sizes(gated.space.free)))
    settings = SearchSettings.model_validate(HOW | {"rounds": 2, "schedule": {"name": "hfp"}})
    run = Run(Accelerator(cpu=True))
    run.bars.say = said.append
    arch = search(gated, loader, budget=Budget.of(1.001 * least, cost), settings=settings, run=run)
    assert float(cost(arch.sizes(gated.space.free))) == least
    assert any("round 1 removes nothing" in line for line in said)
