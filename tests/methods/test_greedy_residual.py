"""i-SpaSP: the support of what readers miss, beside a naive loop, and where it is known."""

import copy
from functools import cache

import pytest
import torch
from known_answers import planted_units
from torch import Tensor, nn

from nas_prune.base.errors import BudgetError, DataError
from nas_prune.costs import Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.greedy_residual import greedy_residual
from nas_prune.tracing.arch import Arch


class Net(nn.Module):
    """Two blocks, the first read by a strided convolution with a BatchNorm behind it, the second by a linear layer."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3, 2, 1), nn.BatchNorm2d(10)
        self.head, self.activation = nn.Linear(10, 4), activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.norm(self.second(self.activation(self.first(x))))).mean((2, 3)))


@cache
def made(activation: type[nn.Module]) -> tuple[GatedModel, Tensor]:
    """The network in float64, and images."""
    generator = torch.Generator().manual_seed(5)
    model = Net(activation).double().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
        model.norm.running_var.abs_().add_(0.1)
    images = torch.randn(6, 3, 9, 8, generator=generator).double()
    return GatedModel(model, trace(model, images)), images


def question(share: float = 0.5, activation: type[nn.Module] = nn.ReLU) -> Question:
    """What stays of it within a share of its multiply-adds?"""
    gated, images = copy.deepcopy(made(activation))
    scores = {name: torch.arange(axis.size).double() for name, axis in gated.space.free.items()}
    batches = [(each, torch.zeros(3).long()) for each in images.split(3)]
    cost = Macs(gated.axes)
    return Question(scores, cost, share * float(cost({})), gated.space, gated=gated, batches=batches)


def naive(hidden: Tensor, layer: nn.Module, gain: Tensor, size: int) -> list[int]:
    """The paper's loop over units of ``hidden`` (b c ...), of which ``layer`` makes outputs with this gain (o ...)."""
    signed, chosen = bool((hidden >= 0).all()), list[int]()

    def per_unit(values: Tensor) -> Tensor:
        values = values if signed else values.square()
        return values.transpose(0, 1).flatten(1).sum(1)

    def outputs(given: Tensor) -> Tensor:
        return gain * (layer(given) - layer(torch.zeros_like(given)))

    for _ in range(20):
        pruned = torch.zeros_like(hidden)
        pruned[:, chosen] = hidden[:, chosen]
        leaf = hidden.clone().requires_grad_()
        loss = 0.5 * (outputs(leaf) - outputs(pruned).detach()).square().sum()
        answers = per_unit(torch.autograd.grad(loss, leaf)[0])
        among = sorted({*answers.topk(2 * size).indices.tolist(), *chosen})
        chosen = sorted(among[i] for i in per_unit(hidden)[among].topk(size).indices.tolist())
    return chosen


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_the_support_is_that_of_the_papers_loop_block_by_block(activation: type[nn.Module]) -> None:
    asked = question(0.4, activation)
    gated = asked.model("test")
    before = copy.deepcopy(gated.state_dict())
    kept = greedy_residual(asked).arch.kept
    assert all(torch.equal(value, before[key]) for key, value in gated.state_dict().items())
    model, images = gated.plain().eval(), torch.cat([x for x, _ in asked.batches])
    gain = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    first = model.activation(model.first(images)).detach()
    assert list(kept["first"]) == naive(first, model.second, gain.detach().reshape(-1, 1, 1), len(kept["first"]))
    with torch.no_grad():
        closed = [unit for unit in range(12) if unit not in kept["first"]]
        first[:, closed] = 0  # the second block reads what the first one is pruned to
        second = model.activation(model.norm(model.second(first))).mean((2, 3))
    assert list(kept["second"]) == naive(second, model.head, torch.ones(4).double(), len(kept["second"]))


def test_a_sparse_hidden_layer_is_recovered_exactly() -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 60)).double()
        units = sorted(torch.randperm(100, generator=generator)[:8].tolist())
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(60, 100, generator=generator))
            model[0].bias.fill_(-1e3)
            model[0].bias[units] = 0
        x = torch.randn(200, 20, generator=generator).double()
        gated = GatedModel(model, trace(model, x))
        (name,) = gated.space.free
        cost = Macs(gated.axes)
        limit = float(cost({name: 8}))
        scores = {name: torch.zeros(100)}
        asked = Question(scores, cost, limit, gated.space, gated=gated, batches=[(x, torch.zeros(200))])
        arch = greedy_residual(asked).arch
        assert arch == Arch({name: units})
        assert torch.allclose(gated.fixed(arch)(x), model(x))
        limits = [cost({name: size}) for size in (2, 4, 8)]
        errors = [missed(asked.within(float(limit)), x) for limit in limits]
        assert errors == sorted(errors, reverse=True)


def test_one_round_is_enough_where_the_columns_of_the_second_layer_are_orthogonal() -> None:
    generator, more = torch.Generator().manual_seed(0), 0
    for seed in range(6):
        model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 40)).double(), drawn(200, 20, generator)
        with torch.no_grad():
            model[0].weight.copy_(drawn(30, 20, generator))
            model[2].weight.copy_(drawn(40, 30, generator))
            if seed < 3:
                model[2].weight.copy_(torch.linalg.qr(model[2].weight)[0])
        gated = GatedModel(model, trace(model, x))
        (name,) = gated.space.free
        cost, batches = Macs(gated.axes), [(x, torch.zeros(200))]
        scores = {name: torch.zeros(30)}
        asked = Question(scores, cost, float(cost({name: 8})), gated.space, gated=gated, batches=batches)
        once, often = (greedy_residual(asked, iterations=rounds).arch for rounds in (1, 20))
        loudest = model[:2](x).sum(0).topk(8).indices.tolist()
        assert seed >= 3 or once == often == Arch({name: loudest})
        more += once != often
    assert more > 0, "of any other layer one round is not"


def drawn(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(rows, columns, generator=generator).double()


def missed(asked: Question, x: Tensor) -> float:
    """How far the output is from what it was."""
    gated = asked.model("test")
    with torch.no_grad():
        return float((gated.fixed(greedy_residual(asked).arch)(x) - gated.opened()(x)).square().sum())


def test_units_that_nothing_reads_go() -> None:
    torch.manual_seed(0)
    task, planted = planted_units(8)
    gated = GatedModel(task.net, trace(task.net, task.train[0][:1]))
    ((name, axis),) = gated.space.free.items()
    cost, batch = Macs(gated.axes), (task.train[0][:256], task.train[1][:256])
    limit = float(cost({name: len(planted)}))
    asked = Question({name: torch.zeros(axis.size)}, cost, limit, gated.space, gated=gated, batches=[batch])
    assert greedy_residual(asked).arch == Arch({name: planted})


def test_the_support_follows_its_units() -> None:
    asked = question()
    gated, order = asked.model("test"), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    model = gated.plain()
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):
            tensor.copy_(tensor[order].clone())
        model.second.weight.copy_(model.second.weight[:, order].clone())
    other = GatedModel(model, trace(model, made(nn.ReLU)[1]))
    moved = Question(asked.scores, Macs(other.axes), asked.limit, other.space, gated=other, batches=asked.batches)
    kept, found = greedy_residual(asked).arch.kept, greedy_residual(moved).arch.kept
    assert sorted(order[list(found["first"])].tolist()) == sorted(kept["first"])
    assert sorted(found["second"]) == sorted(kept["second"])


def test_what_it_needs_and_what_cannot_be_is_told() -> None:
    asked = question()
    with pytest.raises(BudgetError, match="smallest one"):
        greedy_residual(asked.within(1.0))
    with pytest.raises(DataError, match="at least one batch"):
        greedy_residual(Question(asked.scores, asked.cost, asked.limit, asked.space, gated=asked.gated))
    with pytest.raises(DataError, match="give `gated`"):
        greedy_residual(Question(asked.scores, asked.cost, asked.limit, asked.space))
    assert greedy_residual(question(1.0)).arch == Arch.dense(asked.space.free)
