"""Laws of optimizers and schedules: a stage decays where its recipe says, however long it is; and a removal that
removes nothing changes no step.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn
from torch.optim import Optimizer
from zoo import few

from nas_prune.base.errors import RecipeError
from nas_prune.train.optimizers import carry, optimizer_of, schedule_of
from nas_prune.train.settings import OptimSettings, TrainSettings
from nas_prune.train.stage import Chain, Stage

STEPS = 10  # of an epoch


def rates(epochs: int, first: int = 0, chain: Chain | None = None, **settings: Any) -> list[float]:
    """The learning rate of every step of a stage."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    stage = Stage("stage", epochs, TrainSettings(lr=0.1, **settings), first=first, chain=chain)
    schedule, found = schedule_of(optimizer, stage, STEPS), []
    for step in range(epochs * STEPS):
        schedule.step_update(first * STEPS + step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({"scheduler": "step"}, {20: 0.01, 40: 0.001}),
        ({"scheduler": "step", "decay_epochs": 25.0, "decay_rate": 0.5}, {25: 0.05, 50: 0.025}),
        ({"scheduler": "multistep"}, {30: 0.01, 45: 0.001}),
        ({"scheduler": "multistep", "decay_milestones": [0.1, 0.9], "decay_rate": 0.2}, {6: 0.02, 54: 0.004}),
    ],
)
def test_steps_are_where_the_recipe_says(settings: dict[str, Any], decays: dict[int, float]) -> None:
    found = rates(60, **settings)
    expected = [([0.1] + [rate for epoch, rate in decays.items() if step >= epoch * STEPS])[-1] for step in range(600)]
    late = [step for step in range(600) if found[step] != pytest.approx(expected[step])]
    assert len(late) <= len(decays), "timm decays one step early where milestones are asked for"


def test_gates_warm_up_from_a_share_of_their_own_rate() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = schedule_of(optimizer, Stage("warm-up", 2, TrainSettings(lr=0.5, warmup_epochs=1.0)), STEPS)
    rates = []
    for step in range(2 * STEPS):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) <= 1e-3
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("scheduler", ["cosine", "step", "multistep"])
def test_stages_of_one_chain_follow_one_schedule(scheduler: str) -> None:
    chain = Chain(12)
    parts = rates(4, 0, chain, scheduler=scheduler) + rates(8, 4, chain, scheduler=scheduler)
    assert parts == pytest.approx(rates(12, scheduler=scheduler))
    assert parts[-1] < 0.1 * parts[0]


HERE = [name for name in list_optimizers() if name != "adahessian" and not name.startswith(("bnb", "fused"))]
REMEMBERING_MORE = ("kron", "kronc", "kronw")  # matrices for each dimension


def small_net() -> tuple[nn.Module, nn.Module]:
    """A convolution, a norm and a classifier; and a second one, which is the loss's."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return net.double(), nn.Linear(6, 3).double()


def step(models: Sequence[nn.Module], optimizer: Optimizer, seed: int) -> None:
    """One step of both."""
    torch.manual_seed(seed)
    features = models[0][:4](torch.randn(8, 3, 6, 6, dtype=torch.float64))
    loss = models[0][4](features).square().sum() + models[1](features).square().sum()
    optimizer.zero_grad()
    loss.backward()
    torch.manual_seed(seed)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", few(HERE, ("sgd", "adamw", "lamb", "adan", "kron")))
@pytest.mark.parametrize("heir", few((True, False), (True,)))  # whether the loss has new parameters, too
def test_a_step_after_a_removal_of_nothing_is_the_step_without_it(name: str, heir: bool) -> None:
    torch.manual_seed(0)
    models, settings = small_net(), OptimSettings(optimizer=name, lr=0.01)
    optimizer = optimizer_of(models[0], settings)
    optimizer.add_param_group({"params": [*models[1].parameters()]})
    for seed in range(12):
        step(models, optimizer, seed)
    again = copy.deepcopy(models) if heir else (copy.deepcopy(models[0]), models[1])
    fresh = optimizer_of(again[0], settings)
    pairs = [(now, before) for a, b in zip(again, models, strict=True) if a is not b for now, before in both(a, b)]
    came = {now: (before, torch.arange(before.numel()).reshape(before.shape)) for now, before in pairs}
    gone = {*models[0].parameters(), *(before for before, _ in came.values())}
    if name in REMEMBERING_MORE:
        with pytest.raises(RecipeError, match="more than a number per weight"):
            carry(optimizer, fresh, came, gone)
        return
    carry(optimizer, fresh, came, gone)
    plain = copy.deepcopy((models, optimizer))  # one memo: the optimizer is that of the copies
    step(again, fresh, 99)
    step(*plain, 99)
    for a, b in zip(again, plain[0], strict=True):
        for now, before in both(a, b):
            torch.testing.assert_close(now, before, rtol=1e-9, atol=1e-12)


def both(one: nn.Module, other: nn.Module) -> Sequence[tuple[nn.Parameter, nn.Parameter]]:
    """Their parameters, in pairs."""
    return list(zip(one.parameters(), other.parameters(), strict=True))
