"""Laws of schedules: a stage decays where its recipe says, however long it is."""

from typing import Any

import pytest
import torch
from torch import nn

from nas_prune.train.optimizers import schedule_of
from nas_prune.train.settings import TrainSettings
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
