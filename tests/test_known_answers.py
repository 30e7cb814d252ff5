"""Searches and criteria on tasks whose answer is known by construction. Bounds leave room for what other seeds gave."""

import runpy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from asked import ask, learnt
from known_answers import PLANTS, planted_choice, planted_units, planted_width
from zoo import few

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.selectors.ranked import ranked
from nas_prune.tracing.arch import Arch
from nas_prune.train.data.loaders import from_loaders
from nas_prune.train.loop import Run, fit
from nas_prune.train.objective import task_objective
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings
from nas_prune.train.stage import Stage

EXAMPLES = Path(__file__).parents[1] / "examples"
SETTINGS = SearchSettings(optimizer="adamw", lr=1e-2, weight_decay=0.0, gate_lr=0.1, warmup=0, joint=7, freeze=0)


def accuracy(model, pairs):
    x, labels = pairs
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


def gated_for(task, gate):
    x, _ = task.train
    return GatedModel(task.net, trace(task.net, x[:1]), gate)


def data_of(task, batch_size=128):
    loader = task.loader(batch_size)
    return from_loaders(loader, loader, classes=task.net.num_classes)


def train(task, settings, epochs, batch_size=128):
    stage, run = Stage("dense", epochs, settings), Run(Accelerator(cpu=True))
    fit(run, stage, task.net, data_of(task, batch_size), task_objective(settings), [optimizer_of(task.net, settings)])
    task.net.eval()


@pytest.fixture(scope="module")
def ball():
    torch.manual_seed(0)
    return runpy.run_path(str(EXAMPLES / "ball_indicator.py"))


def test_a_search_keeps_the_second_non_linearity_and_shrinks_the_widths(ball):
    axes, sizes = ball["axes"], ball["arch"].sizes(ball["axes"].free)
    depth = [name for name, axis in axes.free.items() if axis.kind == "depth"]
    assert [sizes[name] for name in depth] == [1]
    widths = [size for name, size in sizes.items() if name not in depth]
    assert len(widths) == 2
    assert max(widths) <= 5 * 20  # O(d); seeds gave at most 79, of 200


def test_without_the_second_non_linearity_the_error_is_more_than_twice_as_large_at_the_same_cost(ball):
    axes, budget = ball["axes"], ball["budget"]
    closed = {name: 0.0 for name, axis in axes.free.items() if axis.kind == "depth"}
    assert float(budget.cost(closed)) <= budget.limit  # full widths, no branch: within the budget as well
    assert 2 * ball["found"] < ball["closed"] < 0.2  # 0.25 is the error of a constant; seeds gave 3.1 to 4.4 times


@pytest.mark.parametrize("width", few([4, 12], [4]))
def test_gates_under_one_price_find_the_width_of_the_teacher(width):
    task = planted_width(width)
    gated = gated_for(task, "hard_concrete")
    price = BudgetPenalty(Budget("1x", Macs(gated.axes)), alpha=8.0, form="log")  # a price, and no target to land on
    run = Run(Accelerator(cpu=True))
    learnt(gated, data_of(task), [price], SETTINGS, run)
    arch = gated.eval().arch()
    (found,) = (len(units) for units in arch.kept.values())
    assert width <= found <= 2.5 * width  # of 10 * width; 1.5 to 2.25 times seen
    dense = planted_width(width)
    train(dense, SETTINGS, epochs=7)
    plain = gated_for(dense, "mask")
    norms = {name: plain.weights(name)[0].norm(dim=1) for name in plain.axes.free}
    generator = torch.Generator().manual_seed(0)
    chance = {name: torch.rand(10 * width, generator=generator) for name in norms}
    limit = float(price.cost(arch.sizes(plain.axes)))
    for control in (norms, chance):
        other = ask(ranked, control, price.cost, limit, plain.space)
        assert other.sizes(plain.axes) == arch.sizes(plain.axes)
        assert accuracy(gated.fixed(arch), task.held_out) > 0.1 + accuracy(plain.fixed(other), dense.held_out)


@pytest.mark.parametrize("gate", ["hard_concrete", "sigmoid"])
def test_a_search_finds_the_units_that_do_the_work_whatever_their_magnitude(gate):
    task, planted = planted_units(8)
    assert accuracy(task.net, task.held_out) == 1.0  # it computes what its teacher computes
    gated = gated_for(task, gate)
    (name,) = gated.axes.free
    norms = gated.weights(name)[0].norm(dim=1)
    assert not set(norms.topk(8).indices.tolist()) & set(planted)
    settings = SETTINGS.model_copy(update={"warmup": 5, "joint": 0})
    budget, run = Budget("0.1x", Macs(gated.axes)), Run(Accelerator(cpu=True))
    arch = search(gated, task.loader(), budget=budget, settings=settings, run=run)
    assert arch == Arch({name: planted})
    assert accuracy(gated.eval().fixed(arch), task.held_out) > 0.9  # what soft gates multiplied is in the weights


@pytest.mark.parametrize("name", ["taylor", "snip", "synflow", "hessian", "scop", "sensitivity", "sosp_h", "sosp_i"])
def test_a_criterion_that_looks_at_the_loss_or_the_flow_finds_the_units_that_do_the_work(name):
    task, planted = planted_units(8)
    gated = gated_for(task, "mask")
    (scores,) = criteria[name](gated, list(task.loader())[:8]).values()
    assert sorted(scores.topk(8).indices.tolist()) == planted


@pytest.mark.parametrize("best", few(PLANTS, ["dilated_3x3"]))
def test_only_the_planted_operation_is_worth_anything(best):
    task = planted_choice(best)
    train(task, SETTINGS.model_copy(update={"lr": 0.04}), epochs=6, batch_size=64)
    gated = gated_for(task, "mask")
    names = gated.space.choices["choice"]
    alone = {name: Arch({other: [0] if other == name else [] for other in names}) for name in names}
    value = {name: accuracy(gated.eval().fixed(arch), task.held_out) for name, arch in alone.items()}
    right = value.pop(f"choice.{best}")
    assert right > 0.45 > max(value.values())  # chance is 0.25; six seeds gave 0.60 to 1.0, the others up to 0.37
