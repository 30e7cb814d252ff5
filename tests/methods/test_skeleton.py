"""Filter Skeleton as its paper trains it, against a loop written from it: one SGD for weights and skeletons."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.skeleton import Skeleton
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.penalties.skeleton import SkeletonPenalty
from nas_prune.train.learner import Learner, gate_optimizers
from nas_prune.train.settings import SearchSettings

DELTA, ALPHA, RATE, DECAY, MOMENTUM, STEPS = 0.6, 0.05, 0.1, 0.02, 0.9, 12
IMAGES = torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(6) % 4


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


@pytest.fixture
def gated() -> GatedModel:
    model = chain()
    axes = trace(model.eval(), IMAGES[:1].float(), stripes=True)
    return GatedModel(model.double(), axes, "skeleton", options={"threshold": DELTA}).double()


def skeletons(gated: GatedModel) -> list[Skeleton]:
    return [gate for gate in gated.gates.values() if isinstance(gate, Skeleton)]


def settings(**changes: object) -> SearchSettings:
    how = {"gate_lr": None, "lr": RATE, "weight_decay": DECAY, "momentum": MOMENTUM, "optimizer": "momentum"}
    return SearchSettings.model_validate({**how, **changes})


def said(model: nn.Module, numbers: list[Tensor]) -> Tensor:
    """The paper's forward pass: W * FS; what a filter without a stripe says, beta included, is zero."""
    x = IMAGES
    for first, fs, padding in zip((0, 3), numbers, (0, 1), strict=True):
        weight = model[first].weight
        x = F.conv2d(x, weight * fs.reshape(len(weight), 1, 3, 3), padding=padding)
        lives = (fs.reshape(len(weight), 9) != 0).any(1).double()
        x = model[first + 2](model[first + 1](x)) * lives.reshape(1, -1, 1, 1)
    return model[6:](x)


def test_weights_and_skeletons_are_trained_by_the_one_sgd_of_the_paper(gated: GatedModel) -> None:
    learner, penalty = Learner(gated, settings(), None), SkeletonPenalty(alpha=ALPHA)
    assert len(learner.optimizers) == 1
    naive = chain().double().train()
    naive_fs = [torch.ones(gate.size, dtype=torch.float64) for gate in skeletons(gated)]
    parameters = dict(naive.named_parameters())
    buffers = {name: torch.zeros_like(each) for name, each in parameters.items()}
    fs_buffers = [torch.zeros_like(each) for each in naive_fs]
    gated.train()
    for _ in range(STEPS):
        gated.zero_grad()
        (F.cross_entropy(gated(IMAGES), LABELS) + penalty(gated)).backward()
        learner.optimizers[0].step()

        leaves = [each.clone().requires_grad_() for each in naive_fs]
        naive.zero_grad()
        F.cross_entropy(said(naive, leaves), LABELS).backward()
        for name, each in parameters.items():
            decay = DECAY if each.ndim > 1 else 0.0  # the paper decays all; norms and biases are spared here
            buffers[name] = MOMENTUM * buffers[name] + each.grad + decay * each.detach()
            each.data -= RATE * buffers[name]
        for index, (number, leaf) in enumerate(zip(naive_fs, leaves, strict=True)):
            slope = (leaf.grad + ALPHA * number.sign()) * (number.abs() > DELTA)
            fs_buffers[index] = MOMENTUM * fs_buffers[index] + slope + DECAY * number
            moved = number - RATE * fs_buffers[index]
            naive_fs[index] = moved.where((number != 0) & (moved.abs() > DELTA), 0)  # and what is dead stays so
    dead = sum(int((each == 0).sum()) for each in naive_fs)
    assert 0 < dead < sum(map(len, naive_fs))
    gated.eval()
    for gate, number in zip(skeletons(gated), naive_fs, strict=True):
        assert torch.allclose(gate([]).detach(), number, atol=1e-10)
    for name, each in gated.backbone.named_parameters():
        assert torch.allclose(each, parameters[name], atol=1e-10)


def test_the_task_moves_a_skeleton_through_its_weight_alone(gated: GatedModel) -> None:
    """FS.grad = sum over C of W.grad * W: nothing is added to the largest stripe of a filter."""
    gated.train().zero_grad()
    F.cross_entropy(gated(IMAGES), LABELS).backward()
    for name, gate in zip(("0", "3"), skeletons(gated), strict=True):
        weight = gated.backbone.get_parameter(f"{name}.weight")
        assert torch.allclose(gate.skeleton.grad, (weight.grad * weight).sum(1).flatten())


def test_a_budget_still_reaches_the_largest_stripe_of_each_filter(gated: GatedModel) -> None:
    gated.train()
    task = F.cross_entropy(gated(IMAGES), LABELS)
    gate = skeletons(gated)[0]
    with torch.no_grad():
        gate.skeleton.view(-1, 9)[:, 4] = 1.2
    penalty = BudgetPenalty(Budget("0.5x", Macs(gated.axes)))
    gated(IMAGES)
    assert task.requires_grad
    (slope,) = torch.autograd.grad(penalty(gated), gate.skeleton)
    sizes = gated.sizes()
    assert sizes["0"].requires_grad
    assert bool((slope.view(-1, 9)[:, 4] > 0).all())


def test_gates_without_a_rate_are_warmed_up_as_weights_are(gated: GatedModel) -> None:
    (alone,) = gate_optimizers(gated, settings())
    assert isinstance(alone, torch.optim.SGD)
    assert {id(each) for group in alone.param_groups for each in group["params"]} == {
        id(gate.skeleton) for gate in skeletons(gated)
    }
    with_rate = Learner(gated, settings(gate_lr=1e-3), None).optimizers
    assert [type(each).__name__ for each in with_rate[1:]] == ["Adam"]
