"""Planted units: a few that work among many that are idle and longer. Who looks at the loss finds them."""

import pytest
import torch
from torch import Tensor, nn
from zoo import traced_model

from nas_prune.methods.criteria.of_loss.ablation import ablation
from nas_prune.methods.criteria.of_loss.shapley import shapley
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.shapley import EstimatePlan

UNITS, WORKING = 24, (3, 10, 14, 22)


@pytest.fixture
def planted() -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """A hidden layer whose idle units are the longest, and images that the network is right about."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, UNITS), nn.ReLU(), nn.Linear(UNITS, 3)).double()
    idle = [unit for unit in range(UNITS) if unit not in WORKING]
    with torch.no_grad():
        model[0].weight.div_(model[0].weight.norm(dim=1, keepdim=True))
        model[0].weight[idle] *= 1.5
        model[0].bias.fill_(0.3)
        model[2].weight.copy_(4 * torch.eye(3, dtype=torch.float64).repeat(1, UNITS // 3))  # each speaks for one class
        model[2].weight[:, idle] = 0.0
        images = torch.randn(64, 6, dtype=torch.float64)
        labels = model(images).argmax(1)
    return GatedModel(model, traced_model(model, images[:2]).axes), [(images, labels)]


def found(score: Tensor) -> set[int]:
    """The best units, as many as work."""
    return set(score.topk(len(WORKING)).indices.tolist())


@pytest.mark.parametrize(("order", "count"), [("taylor", 4), ("alone", 4), ("norm", 0)])
@pytest.mark.parametrize("steps", [1, 8])
def test_ablation_finds_them_in_the_order_of_the_loss(
    planted: tuple[GatedModel, list[tuple[Tensor, Tensor]]], order: str, count: int, steps: int
) -> None:
    gated, batches = planted
    (score,) = ablation(gated, batches, steps=steps, order=order).values()  # type: ignore[arg-type]
    assert len(found(score) & set(WORKING)) == count


def test_shapley_keeps_by_value_down_to_the_last_unit(
    planted: tuple[GatedModel, list[tuple[Tensor, Tensor]]],
) -> None:
    gated, batches = planted
    (score,) = shapley(gated, batches, players=UNITS, plan=EstimatePlan(4 * UNITS)).values()
    idle = [unit for unit in range(UNITS) if unit not in WORKING]
    assert float(score[idle].abs().max()) <= 0.01 * float(score.max())  # worth nothing, as far as is estimated
    assert set(score.topk(3).indices.tolist()) <= set(WORKING)  # one of four harms more than it helps
