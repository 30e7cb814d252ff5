"""Soft filter pruning and its kin against the equations: one loop over filters, all schedules, bit for bit."""

from dataclasses import replace
from functools import partial
from math import floor

import pytest
import torch
from accelerate import Accelerator
from asked import ask
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Traced, apart, traced_model

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.derive import derive
from nas_prune.methods.compensations import compensations
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, movers
from nas_prune.methods.movers.soft_filter import AWAKE, SoftFilter
from nas_prune.methods.schedules import Phase, Schedule, schedules
from nas_prune.methods.selectors import selectors
from nas_prune.train.loop import Run
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings

EPOCHS, SIZES, GONE = 10, (20, 15), (8, 6)  # of filters, 40 % of which go
IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(4))
LABELS = torch.arange(8) % 4
KIN = {  # of the card's table, and other options
    "sfp": schedules["sfp"],
    "hfp": schedules["hfp"],
    "asfp": schedules["asfp"],
    "asfp cubic": partial(schedules["asfp"], rise="cubic"),
    "srfp": schedules["srfp"],
    "asrfp": schedules["asrfp"],
    "ghfp": schedules["ghfp"],
    "ghfp on srfp": partial(schedules["ghfp"], rise="at_once", start=0.5),
}


class Chain(nn.Sequential):
    """Two convolutions with norms, and a classifier."""

    def __init__(self, padding: int = 0) -> None:
        first, second = SIZES
        super().__init__(
            *(nn.Conv2d(3, first, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=padding, bias=False), nn.BatchNorm2d(second), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 4)),
        )


@pytest.fixture(scope="module")
def net() -> Traced:
    torch.manual_seed(0)
    return traced_model(Chain(), IMAGES[:2])


def gated_of(net: Traced) -> GatedModel:
    return GatedModel(net.fresh(), net.axes, "mask")


def mover_of(gated: GatedModel, schedule: Schedule, epochs: int = EPOCHS, *, wake: bool = False) -> SoftFilter:
    cost = Macs(gated.axes)
    left = {name: size - gone for (name, _), size, gone in zip(gated.space.free.items(), SIZES, GONE, strict=True)}
    mover = movers["soft_filter"](gated, Aim(Budget.of(float(cost(left)), cost), epochs, schedule), wake=wake)
    assert list(mover.gone.values()) == list(GONE)
    return mover


def convolutions(gated: GatedModel) -> list[Tensor]:
    return [gated.backbone.get_parameter(name) for name in ("0.weight", "3.weight")]


def trained(weights: list[Tensor], epoch: int) -> None:
    """As if an epoch had moved them, zeros included."""
    generator = torch.Generator().manual_seed(epoch)
    with torch.no_grad():
        for weight in weights:
            weight += 0.05 * torch.randn(weight.shape, generator=generator)


def updated(weights: list[Tensor], gone: list[set[int]], phase: Phase) -> None:
    """The card's update, filter by filter; ``gone`` are those closed for good, which also nothing reads any more."""
    for layer, weight in enumerate(weights):
        count, hard = (floor(GONE[layer] * phase.closed * share) for share in (1.0, phase.hard))
        norms = {}
        for filter in range(SIZES[layer]):
            read = [channel for channel in range(weight.shape[1]) if layer == 0 or channel not in gone[layer - 1]]
            norms[filter] = -1.0 if filter in gone[layer] else float(weight[filter, read].square().sum())
        order = sorted(norms, key=lambda filter: (norms[filter], filter))
        gone[layer] |= set(order[:hard])
        for filter in order[:count]:
            weight[filter] *= 0.0 if filter in gone[layer] else phase.soft


@pytest.mark.parametrize("name", KIN)
def test_every_update_is_that_of_the_equations(net: Traced, name: str) -> None:
    gated, schedule = gated_of(net), KIN[name]
    mover, expected = mover_of(gated, schedule), [weight.detach().clone() for weight in convolutions(gated)]
    gone: list[set[int]] = [set(), set()]
    for epoch in range(-1, EPOCHS):
        if epoch == -1:
            mover.begin_epoch(0)
        else:
            mover.begin_epoch(epoch + 1)  # only the first one begins with an update
            trained(convolutions(gated), epoch)
            mover.after_epoch(epoch)
            trained(expected, epoch)
        updated(expected, gone, schedule(epoch, EPOCHS))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(convolutions(gated), expected, strict=True))
        closed = [set((gated.gate(axis).keep == 0).nonzero().flatten().tolist()) for axis in gated.space.free]
        assert closed == gone
    zeros = [int((weight.flatten(1).norm(dim=1) == 0).sum()) for weight in convolutions(gated)]
    assert zeros == list(GONE)


@pytest.mark.parametrize(("hard", "name"), [(0.0, "sfp"), (1.0, "hfp")])
def test_ghfp_is_sfp_without_a_hard_share_and_hfp_with_nothing_else(net: Traced, hard: float, name: str) -> None:
    ghfp = partial(schedules["ghfp"], rise="at_once")
    found = []
    for schedule in (lambda epoch, epochs: replace(ghfp(epoch, epochs), hard=hard), schedules[name]):
        gated = gated_of(net)
        mover = mover_of(gated, schedule, wake=True)
        for epoch in range(EPOCHS):
            mover.begin_epoch(epoch)
            trained([*gated.backbone.parameters()], epoch)
            mover.after_epoch(epoch)
        found.append(gated.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_as_many_are_closed_as_the_card_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    gated = GatedModel(model, traced_model(model, IMAGES[:2]).axes, "mask")
    cost, name = Macs(gated.axes), next(iter(gated.space.free))
    budget = Budget.of(float(cost({name: 64 - floor(64 * 0.4)})), cost)
    mover = movers["soft_filter"](gated, Aim(budget, 200, schedules["ghfp"]))
    found = {}
    for epoch in range(200):
        mover.after_epoch(epoch)
        zeros = int((gated.weights(name)[0].norm(dim=1) == 0).sum())
        found[epoch] = zeros, int((gated.gate(name).keep == 0).sum())
    # 22 of 64 * 0.4 = 25.6 after epoch 99; the budget gives whole filters, 25
    assert [found[epoch] for epoch in (24, 49, 99, 149, 199)] == [(8, 2), (14, 8), (21, 19), (24, 24), (25, 25)]


def gradients(gated: GatedModel) -> list[Tensor]:
    """Of a training step, one number per filter of each convolution."""
    gated.train().zero_grad()
    F.cross_entropy(gated(IMAGES), LABELS).backward()
    return [weight.grad.flatten(1).norm(dim=1) for weight in convolutions(gated)]


@pytest.mark.parametrize(("shift", "scale"), [(-0.5, 1.0), (0.0, 1.0), (0.5, 0.0)])
def test_a_zeroed_unit_may_grow_back_whatever_its_norm_says(net: Traced, shift: float, scale: float) -> None:
    for wake in (False, True):
        gated = gated_of(net)
        norms = [module for module in gated.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.constant_(norm.bias, shift)
        nn.init.constant_(norms[1].weight, scale)
        mover_of(gated, schedules["sfp"], wake=wake).begin_epoch(0)
        zeroed = [weight.flatten(1).norm(dim=1) == 0 for weight in convolutions(gated)]
        assert [int(each.sum()) for each in zeroed] == list(GONE)
        grown = gradients(gated)
        alive = [bool((each[zero] > 0).all()) for each, zero in zip(grown, zeroed, strict=True)]
        assert alive == [wake and scale != 0, wake]  # what only silent units read has no gradient, zeroed or not
        for norm, zero in zip(norms, zeroed, strict=True):
            kept, raised = norm.bias[~zero], norm.bias[zero]
            assert bool((kept == shift).all())
            assert bool((raised == (shift if shift > 0 or not wake else torch.tensor(AWAKE))).all())


def test_after_an_epoch_of_training_others_are_zeroed(net: Traced) -> None:
    gated = gated_of(net)
    for module in gated.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, -0.5)
    mover = mover_of(gated, schedules["sfp"], wake=True)
    mover.begin_epoch(0)
    before = [weight.flatten(1).norm(dim=1) == 0 for weight in convolutions(gated)]
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.3)  # no momentum: nothing but the gradient moves them
    for _ in range(20):
        gradients(gated)
        optimizer.step()
    mover.after_epoch(0)
    after = [weight.flatten(1).norm(dim=1) == 0 for weight in convolutions(gated)]
    assert any(bool((was & ~now).any()) for was, now in zip(before, after, strict=True))


def test_what_is_closed_for_good_stays_as_it_is(net: Traced) -> None:
    gated = gated_of(net)
    with torch.no_grad():
        for module in gated.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, -0.5)
    mover = mover_of(gated, schedules["hfp"], wake=True)
    mover.begin_epoch(0)
    assert all(bool((norm.bias == -0.5).all()) for norm in gated.backbone.modules() if isinstance(norm, nn.BatchNorm2d))
    closed = [gated.gate(axis).keep == 0 for axis in gated.space.free]
    assert [int(each.sum()) for each in closed] == list(GONE)
    assert not any(bool(each[zero].any()) for each, zero in zip(gradients(gated), closed, strict=True))


@pytest.mark.parametrize("padding", [0, 1])
def test_the_constant_of_what_is_zeroed_goes_on_in_what_is_derived(padding: int) -> None:
    torch.manual_seed(0)
    model = Chain(padding)
    gated = GatedModel(model, traced_model(model, IMAGES[:2]).axes, "mask")
    mover, optimizer = mover_of(gated, schedules["sfp"], wake=True), torch.optim.SGD(gated.parameters(), lr=0.1)
    for epoch in range(EPOCHS):
        mover.begin_epoch(epoch)
        gradients(gated)
        optimizer.step()
        mover.after_epoch(epoch)
    budget = mover.aim.budget
    arch = ask(selectors["uniform"], criteria["magnitude"](gated, []), budget.cost, budget.limit, gated.space)
    edits = compensations["mean"](gated.eval(), arch, [(IMAGES, LABELS)])
    others = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        evaluated = gated(others)
        plain, made_up = (derive(model, gated.axes, arch, edits=each).eval()(others) for each in ({}, edits))
    assert apart(evaluated, plain) > 1e-2
    if padding:  # borders see zeros beyond them, and no constant
        assert apart(evaluated, made_up) < 0.3 * apart(evaluated, plain)
    else:
        assert apart(evaluated, made_up) < 1e-5


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_search_ends_in_what_the_mover_has_left(net: Traced, rounds: int) -> None:
    gated = gated_of(net)
    cost = Macs(gated.axes)
    left = {name: size - gone for name, size, gone in zip(gated.space.free, SIZES, GONE, strict=True)}
    how = {"mover": "soft_filter", "schedule": "ghfp", "penalties": [], "rounds": rounds}
    settings = SearchSettings.model_validate({**how, "joint": 3, "warmup": 0, "freeze": 0, "lr": 0.01})
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=4)
    budget = Budget.of(float(cost(left)), cost)
    arch = search(gated, loader, budget=budget, settings=settings, run=Run(Accelerator(cpu=True)))
    assert arch.sizes(gated.space.free) == left
