"""Laws of averaged weights: what gates and movers remember is no weight; what is set is set in the average, too."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from descriptions import STRUCTURED_SPACE
from torch import Tensor, nn

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.replace import laid_out
from nas_prune.methods.compensations import compensations
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.movers import movers
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.scores import Scores
from nas_prune.tracing.arch import Arch
from nas_prune.train import loop, search
from nas_prune.train.average import Average, set_alike
from nas_prune.train.choose import Met
from nas_prune.train.data import loaders
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run
from nas_prune.train.rounds import Alive, rounds_of
from nas_prune.train.search import Parts, learn, moved
from nas_prune.train.settings import SearchSettings

GATE_OF = {"soft_filter": "mask", "saliency": "dynamic", "inheriting": "mask"}
PAIRS = [(gate, None) for gate in gates] + [(gate, mover) for mover, gate in GATE_OF.items()]
HOW = {
    "warmup": 0,
    "joint": 3,
    "max_steps": 2,
    "freeze": 0,
    "lr": 0.05,
    "gate_lr": 0.2,
    "holdout": 0.5,
}
DATA = DataSettings(name="generated", image_size=8, batch_size=16)


def gated_net(gate: str, space: str) -> GatedModel:
    """Two convolutions with norms, and a classifier."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    return GatedModel(net, laid_out(net, torch.randn(2, 3, 8, 8), space), gate)


def learnt(tmp_path: Path, gate: str, mover: str | None, folder: Path | None = None, **changes: object) -> Learner:
    """What a joint training of three epochs leaves."""
    choices = tmp_path / "choices.yaml"
    choices.write_text(STRUCTURED_SPACE)
    spaces = {"skeleton": "stripes", "softmax": str(choices), "shapley": str(choices)}
    gated = gated_net(gate, str(choices) if mover == "inheriting" else spaces.get(gate, "single_units"))
    settings = SearchSettings.model_validate({**HOW, "mover": {"name": mover}, **changes})
    run, budget = Run(Accelerator(cpu=True), 3, folder, identity="test"), Budget("0.6x", Macs(gated.axes))
    penalties = [BudgetPenalty(budget)] if any(True for _ in gated.gates.parameters()) else []
    parts = Parts(budget, budget, lambda _: penalties, lambda each, _: each.scores(), lambda *_: None)
    learner = Learner(gated, settings, None)
    training, learner.mover = moved(learner, loaders.load(DATA, seed=3), parts, run=run)
    (each,) = rounds_of(1, settings.joint, lambda *_: None)
    learn(learner, training, parts, each, run=run)
    return learner


def remembered(gated: GatedModel) -> dict[str, Any]:
    """All that gates know, but for what is averaged."""
    found: dict[str, Any] = {}
    for path, module in gated.gates.named_modules():
        averaged = getattr(module, "averaged", ())
        found |= {f"{path}.{name}": value for name, value in module._buffers.items() if name not in averaged}
        numbers = {name: value for name, value in vars(module).items() if isinstance(value, float)}
        found |= {f"{path}.{name}": torch.tensor(value) for name, value in numbers.items()}
    return found


def test_every_mover_is_tried() -> None:
    assert set(GATE_OF) == set(movers)


@pytest.mark.parametrize(("gate", "mover"), PAIRS)
def test_what_gates_remember_is_not_averaged(tmp_path: Path, gate: str, mover: str | None) -> None:
    plain, averaged = (learnt(tmp_path, gate, mover, ema_decay=decay) for decay in (None, 0.9))
    expected = remembered(plain.gated)
    assert expected.keys() == remembered(averaged.gated).keys()
    for model in averaged.models:  # the one that is trained on, and the one that was evaluated
        for name, value in remembered(model).items():
            assert torch.equal(value, expected[name]), name
    weights = [learner.gated.backbone.get_parameter("8.weight") for learner in (plain, averaged)]
    assert not torch.equal(*weights), "weights are averaged"


def test_what_a_mover_has_zeroed_is_zero_in_the_average(tmp_path: Path) -> None:
    learner = learnt(tmp_path, "mask", "soft_filter", ema_decay=0.9, schedule="sfp")
    for model in learner.models:
        gone = {name: int((model.weights(name)[0].norm(dim=1) == 0).sum()) for name in model.space.free}
        assert gone == learner.mover.gone
    assert sum(gone.values()) > 0


def test_what_is_set_is_set_in_the_average_and_what_is_learnt_is_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, decay=0.5)
    with torch.no_grad():
        model[0].weight.add_(1.0)  # learnt
        with set_alike(model, average):
            model[0].weight[1] = 7.0
            model[1].running_mean[0] = 3.0
        with set_alike(model, None):
            model[1].running_var.fill_(9.0)
    torch.testing.assert_close(average.module[0].weight[0], model[0].weight[0] - 1)
    assert average.module[0].weight[1].tolist() == [7.0] * 3
    assert average.module[1].running_mean.tolist() == [3.0, 0.0]
    assert average.module[1].running_var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("gate", ["sigmoid", "dsa"])
def test_a_finished_training_that_is_looked_at_again_says_the_same(tmp_path: Path, gate: str) -> None:
    first, again = (learnt(tmp_path, gate, None, tmp_path) for _ in range(2))
    expected, found = ({**remembered(each.gated), **each.gated.scores()} for each in (first, again))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def searched_once(
    monkeypatch: pytest.MonkeyPatch, gated: GatedModel, look: Callable[[Learner], None], **changes: object
) -> Arch:
    """A search of one training with an average; ``look``: told when units are scored, decided on, and settle."""
    made = list[Learner]()
    settle = search.settle

    class Noted(Learner):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    def score(model: GatedModel, _: Any) -> Scores:
        look(made[0])
        return model.scores()

    def decide(alive: Alive, *_: Any) -> Met:
        look(made[0])
        return Met(Arch.random(alive.gated.space.free, 0.5, generator=torch.Generator().manual_seed(1)))

    def settles(*args: Any, **options: Any) -> None:
        look(made[0])
        settle(*args, **options)

    monkeypatch.setattr(search, "Learner", Noted)
    monkeypatch.setattr(search, "settle", settles)
    settings = SearchSettings.model_validate({**HOW, "freeze": 2, "once": True, "ema_decay": 0.9, **changes})
    budget, batches = Budget("0.6x", Macs(gated.axes)), [(IMAGES, torch.arange(16) % 10)]
    penalties = [BudgetPenalty(budget)] if any(True for _ in gated.gates.parameters()) else []
    parts = Parts(budget, budget, lambda _: penalties, score, decide, batches)
    data = loaders.load(DATA, seed=3)
    return search.searched(gated, data, parts, settings=settings, run=Run(Accelerator(cpu=True), 3)).arch


@pytest.mark.parametrize("gate", ["softmax", "hard_concrete"])
def test_folding_leaves_what_the_average_computes_as_it_was(monkeypatch: pytest.MonkeyPatch, gate: str) -> None:
    said = list[list[Tensor]]()

    def look(learner: Learner) -> None:
        with torch.no_grad():
            said.append([model.eval()(IMAGES) for model in learner.models])

    searched_once(monkeypatch, gated_net(gate, "single_units"), look)
    torch.testing.assert_close(said[1], said[0])
    assert not torch.allclose(*said[0]), "weights are averaged"


def test_what_stays_makes_up_for_what_goes_in_the_average_as_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[list[GatedModel]]()
    changes = {"compensation": {"name": "ridge"}}
    net = gated_net("mask", "single_units")
    arch = searched_once(monkeypatch, net, lambda learner: seen.append(copy.deepcopy(learner.models)), **changes)
    for before, after in zip(*seen[1:], strict=True):
        edits = compensations["ridge"](before, arch, [(IMAGES, torch.arange(16) % 10)])
        assert edits
        for name, value in edits.items():
            torch.testing.assert_close(after.backbone.state_dict()[name], value)


def test_while_weights_settle_the_average_that_is_evaluated_is_of_the_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, top1 = list[list[Arch]](), loop.top1

    def noted(model: nn.Module, *args: Any) -> float:
        kept.append([each.arch for each in getattr(model, "_fixed", [])])
        return top1(model, *args)

    monkeypatch.setattr(loop, "top1", noted)
    arch = searched_once(monkeypatch, gated_net("mask", "stripes"), lambda _: None)
    assert kept == [[]] * HOW["joint"] + [[arch]] * 2
