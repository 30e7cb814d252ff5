"""Laws of the movers: what is zeroed, what comes back, and what never does."""

from functools import partial

import pytest
import torch
from asked import ask
from torch import nn
from zoo import traced

from nas_prune.base.errors import BudgetError, SpaceError
from nas_prune.costs import Budget, Macs
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, movers
from nas_prune.methods.schedules import Phase, schedules
from nas_prune.methods.selectors import selectors
from nas_prune.methods.selectors.uniform import uniform_widths
from nas_prune.tracing.space import SearchSpace

EPOCHS = 8


@pytest.fixture
def gated() -> GatedModel:
    net = traced("test_resnet")
    return GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), "mask")


def soft_filter(gated: GatedModel, schedule: str, **options: object) -> nn.Module:
    aim = Aim(Budget("0.5x", Macs(gated.axes)), EPOCHS, partial(schedules[schedule], **options))
    return movers["soft_filter"](gated, aim)


def zeroed(gated: GatedModel) -> dict[str, set[int]]:
    """The units of each axis that no weight writes."""
    return {name: set((gated.weights(name)[0].norm(dim=1) == 0).nonzero().flatten().tolist()) for name in gated.writers}


def grown(gated: GatedModel) -> None:
    """As if trained: every weight moves, also where it was zero."""
    with torch.no_grad():
        for parameter in gated.backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("schedule", schedules)
def test_at_the_end_as_many_are_zero_as_the_budget_wants(gated: GatedModel, schedule: str) -> None:
    mover = soft_filter(gated, schedule)
    hard: dict[str, set[int]] = {name: set() for name in gated.writers}
    for epoch in range(EPOCHS):
        mover.begin_epoch(epoch)
        grown(gated)
        mover.after_step()
        mover.after_epoch(epoch)
        closed = {name: set((gated.gate(name).keep == 0).nonzero().flatten().tolist()) for name in gated.writers}
        assert all(hard[name] <= closed[name] for name in closed)
        hard = closed
    assert {name: len(units) for name, units in zeroed(gated).items()} == mover.gone
    firmly = schedules[schedule](EPOCHS - 1, EPOCHS).hard == 1
    assert {name: len(units) for name, units in hard.items()} == {name: n * firmly for name, n in mover.gone.items()}
    scores = criteria["magnitude"](gated, [])
    budget = mover.aim.budget
    arch = ask(selectors["uniform"], scores, budget.cost, budget.limit, gated.space)
    assert all(set(range(gated.axes[name].size)) - set(arch.kept[name]) == zeroed(gated)[name] for name in arch.kept)


def test_what_is_soft_comes_back_and_what_is_hard_does_not(gated: GatedModel) -> None:
    mover = soft_filter(gated, "sfp")
    grown(gated)
    mover.after_epoch(0)
    before = zeroed(gated)
    with torch.no_grad():
        for name, units in before.items():
            factor = torch.zeros(gated.axes[name].size)
            for tensor, dim, order in gated.writers[name]:
                assert order is None
                rows = gated.backbone.get_parameter(tensor).movedim(dim, 0)
                rows[list(units)] = 100.0
            assert float(factor.sum()) == 0
    mover.after_epoch(1)
    assert all(not units & zeroed(gated)[name] for name, units in before.items())


def test_shrunk_is_not_zeroed_and_one_is_the_identity(gated: GatedModel) -> None:
    state = {name: value.clone() for name, value in gated.backbone.state_dict().items()}
    mover = movers["soft_filter"](gated, Aim(Budget("0.5x", Macs(gated.axes)), 1, lambda *_: Phase(1, 0, 1.0)))
    mover.after_epoch(0)
    assert all(torch.equal(value, state[name]) for name, value in gated.backbone.state_dict().items())
    movers["soft_filter"](gated, Aim(mover.aim.budget, 1, lambda *_: Phase(1, 0, 0.25))).after_epoch(0)
    name = "conv1" if "conv1" in gated.writers else next(iter(gated.writers))
    ratio = gated.weights(name)[0].norm(dim=1) / state[gated.writers[name][0][0]].flatten(1).norm(dim=1)
    assert sorted({round(each, 3) for each in ratio.tolist()}) == [0.25, 1.0]


def test_other_gates_and_branches_are_refused(gated: GatedModel) -> None:
    other = GatedModel(gated.backbone, gated.space, "sigmoid")
    with pytest.raises(SpaceError, match=r"gate\.name: mask"):
        soft_filter(other, "sfp")


def test_uniform_widths_are_the_widest_within_the_limit(gated: GatedModel) -> None:
    cost, free = Macs(gated.axes), gated.space.free
    for share in (0.2, 0.3, 0.6, 1.0):
        sizes = uniform_widths(gated.space, cost, share * float(cost({})))
        assert float(cost(sizes)) <= share * float(cost({}))
        assert all(axis.divisor == 1 or sizes[name] % axis.divisor == 0 for name, axis in free.items())
    assert sizes == {name: axis.size for name, axis in free.items()}
    with pytest.raises(BudgetError, match="smallest"):
        ask(selectors["uniform"], {name: torch.rand(axis.size) for name, axis in free.items()}, cost, 1.0, gated.space)
