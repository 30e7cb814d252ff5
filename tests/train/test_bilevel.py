"""Laws of a bilevel search: gates descend the loss of images that weights do not see, and a stopped run goes on."""

import contextlib
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stops import Stop
from torch import Tensor
from torch.nn import functional as F
from zoo import few, traced

from nas_prune.base.errors import InterruptedRunError, RecipeError
from nas_prune.costs import Budget, Macs
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.run.checks import check
from nas_prune.run.recipe.recipe import read
from nas_prune.tracing.space import SearchSpace
from nas_prune.train import loop
from nas_prune.train.data import loaders
from nas_prune.train.data.loaders import parted, set_epoch
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.loop import Run
from nas_prune.train.record.track import Track
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings

ADAM = {"gate_lr": 0.05, "gate_betas": (0.5, 0.999), "gate_weight_decay": 1e-3}
DATA = DataSettings(name="generated", image_size=32, batch_size=16)


def gated_net() -> tuple[GatedModel, Budget]:
    """A small network with gates of one number per unit, the same every time."""
    torch.manual_seed(0)
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), "sigmoid")
    return gated, Budget("0.5x", Macs(net.axes))


def searched(folder: Path, **changes: object) -> GatedModel:
    """What a bilevel search of four epochs of one step leaves."""
    gated, budget = gated_net()
    how = {"warmup": 0, "joint": 4, "freeze": 0, "bilevel": True, "holdout": 0.75, **ADAM, **changes}
    run = Run(Accelerator(cpu=True), 3, folder, Track(folder), identity="test")
    data, settings = loaders.load(DATA, seed=3), SearchSettings.model_validate(how)
    search(gated, data, budget=budget, settings=settings, run=run)
    return gated


def test_gates_take_the_steps_of_adam_down_the_loss_of_held_out_images(tmp_path: Path) -> None:
    still = {"lr": 1e-30, "weight_decay": 0.0}  # so that only the gates move
    found = {name: each.clone() for name, each in searched(tmp_path, **still).gates.named_parameters()}
    gated, budget = gated_net()
    penalty = BudgetPenalty(budget).train()
    training, held = parted(loaders.load(DATA, seed=3), 0.75)
    assert (len(training.train), len(held.train)) == (1, 3)  # the fourth step is the first of their second order
    optimizer = torch.optim.Adam(gated.gates.parameters(), 0.05, (0.5, 0.999), weight_decay=1e-3)

    def epoch(number: int) -> list[tuple[Tensor, Tensor]]:
        set_epoch(held.train, number)
        return list(held.train)

    gated.train()
    for number, (images, labels) in enumerate(islice(chain(epoch(0), epoch(1)), 4)):
        for name in gated.deciders:
            gated.gate(name).advance(number / 4)
        optimizer.zero_grad()
        loss = F.cross_entropy(gated(images), labels)
        (loss + penalty(gated)).backward()
        optimizer.step()
    for name, parameter in gated.gates.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("after", few((1, 2, 3), (1,)))
def test_a_bilevel_search_that_is_stopped_ends_in_the_same_bytes(tmp_path, monkeypatch, after: int) -> None:
    def run(folder: Path, after: int) -> dict[str, Tensor]:
        stop = Stop(after)
        monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(stop))
        return searched(folder, lr=0.05).state_dict()

    whole = run(tmp_path / "whole", 0)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "stopped", after)
    torch.testing.assert_close(run(tmp_path / "stopped", 0), whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.rounds=2", r"search\.rounds does not go with that"),
        ("search.criterion=random", r"search\.criterion does not go"),
        ("gate.kinds.operation.name=shapley", "nothing to learn by gradient"),
    ],
)
def test_what_does_not_go_with_it_is_refused_at_once(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(read("smoke/fashion_mnist_darts_bilevel", [f"--{change}"]))
