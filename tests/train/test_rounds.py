"""Laws of rounds: what goes by when, and a search that removes ends as one that only closes, with all it remembers."""

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stops import Stop
from torch import Tensor
from torch.nn import functional as F
from zoo import Traced, apart, few, traced

from nas_prune.base.errors import InterruptedRunError, RecipeError, SpaceError
from nas_prune.base.parts import bound
from nas_prune.costs import Budget, Macs
from nas_prune.costs.cost import Sizes
from nas_prune.costs.left import Left
from nas_prune.derivation.derive import derive
from nas_prune.derivation.removal import put_back, removed
from nas_prune.derivation.replace import laid_out
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import Gate
from nas_prune.methods.gates.sigmoid import Sigmoid
from nas_prune.methods.movers import Aim, movers
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.schedules import Phase, schedules
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train import loop
from nas_prune.train.average import Average
from nas_prune.train.data import loaders
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run
from nas_prune.train.record.track import Track
from nas_prune.train.rounds import Alive, rounds_of
from nas_prune.train.search import search
from nas_prune.train.settings import MoverSettings, SearchSettings

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(8)


@pytest.fixture(scope="module")
def net() -> Traced:
    """A small residual network."""
    return traced("test_resnet")


def evenly(epoch: int, epochs: int) -> Phase:
    """As much in every epoch."""
    return Phase((epoch + 1) / epochs, 1.0)


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
@pytest.mark.parametrize("epochs", [0, 1, 5, 7])
def test_epochs_are_shared_out_and_the_last_round_is_at_the_target(rounds: int, epochs: int) -> None:
    found = list(rounds_of(rounds, epochs, evenly))
    assert [each.first for each in found] == [sum(each.epochs for each in found[:n]) for n in range(rounds)]
    assert sum(each.epochs for each in found) == epochs
    assert [each.last for each in found] == [False] * (rounds - 1) + [True]
    assert [each.share for each in found] == pytest.approx([(n + 1) / rounds for n in range(rounds)])
    budget = Budget("0.25x", Macs(traced("test_resnet").axes))
    dense = float(budget.cost({}))
    assert found[-1].limit(budget) == pytest.approx(budget.limit)
    assert all(each.limit(budget) == pytest.approx(dense * (1 - 0.75 * each.share)) for each in found)


class Noted(BudgetPenalty):
    """A budget penalty that notes what it is to aim at."""

    aims: list[float]

    def aim(self, limit: float) -> None:
        """Note it."""
        super().aim(limit)
        self.aims.append(limit)


def test_of_one_training_the_limit_slides_from_the_dense_cost_to_the_budget_step_by_step(net: Traced) -> None:
    gated, budget = GatedModel(net.fresh(), net.axes, "weight"), Budget("0.4x", Macs(net.axes))
    penalty, images = Noted(budget), torch.randn(64, 3, 32, 32)
    penalty.aims = []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(64) % 10), batch_size=16)
    how = {"warmup": 0, "joint": 4, "freeze": 1, "rounds": 2, "once": True, "lr": 0.01}
    settings = SearchSettings.model_validate(how | {"schedule": {"name": "gradual", "options": {"begin": 0.5}}})
    search(gated, loader, budget=budget, penalties=[penalty], settings=settings, run=Run(Accelerator(cpu=True)))
    dense = float(budget.cost({}))
    closed = [1 - (1 - max(0.0, step / 16 - 0.5) / 0.5) ** 3 for step in range(16)]
    assert penalty.aims == pytest.approx([dense - share * (dense - budget.limit) for share in closed])


class Closable(Sigmoid):
    """A sigmoid some units of which can be closed for good."""

    live: Tensor

    def __init__(self, size: int, fan_in: Sequence[int]) -> None:
        super().__init__(size, fan_in, init=1.0)
        self.register_buffer("live", torch.ones(size))

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Less than any other, where closed."""
        return super().score(weight).where(self.live > 0, -1e9)


def step(learner: Learner, gated: GatedModel, average: Average) -> None:
    """One step of a search, written out: task loss and penalty, all optimizers, the average."""
    gated.train()
    loss = F.cross_entropy(gated(IMAGES), LABELS) + BudgetPenalty(Budget("0.3x", Macs(traced("test_resnet").axes)))(
        gated
    )
    for optimizer in learner.optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in learner.optimizers:
        optimizer.step()
    average.update(gated)


@pytest.mark.parametrize("optimizer", few(("sgd", "adamw"), ("sgd",)))
def test_a_search_that_removes_ends_as_one_that_only_closes(net: Traced, optimizer: str) -> None:
    settings = SearchSettings(lr=0.05 if optimizer == "sgd" else 1e-3, gate_lr=0.05, optimizer=optimizer, ema_decay=0.5)
    one = GatedModel(net.double(), net.axes, Closable).double()
    two = copy.deepcopy(one)
    closing, removing = Learner(one, settings, None), Learner(two, settings, None)
    for learner in (closing, removing):
        learner.chain.average = Average(learner.gated, decay=0.5)
    kept = Arch()
    for seed in (1, 2):
        for learner in (closing, removing):
            for _ in range(3):
                step(learner, learner.gated, learner.chain.average)
        part = Traced(removing.gated.backbone, removing.gated.axes, IMAGES).random(0.75, seed=seed)
        removing.remove(part)
        kept = removing.alive.kept
        for name in one.space.free:
            closing.gated.gate(name).live.copy_(kept.keep(one.axes[name]))
            closing.chain.average.module.gate(name).live.copy_(kept.keep(one.axes[name]))
    for learner in (closing, removing):
        for _ in range(3):
            step(learner, learner.gated, learner.chain.average)
    small = sum(each.numel() for each in removing.gated.backbone.parameters())
    assert small < 0.5 * sum(each.numel() for each in one.backbone.parameters())
    for before, now in ((closing.gated, removing.gated), (closing.chain.average.module, removing.chain.average.module)):
        with torch.no_grad():
            assert apart(before.eval()(IMAGES), now.eval()(IMAGES)) <= 1e-9
            for name, score in now.scores().items():
                assert apart(before.scores()[name][list(kept.kept[name])], score) <= 1e-9


def test_numbers_go_back_to_the_same_places_however_they_lie_in_memory(net: Traced) -> None:
    removal = removed(GatedModel(net.fresh(), net.axes), net.random(0.5))
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        whole, small = net.fresh().to(memory_format=layout), copy.deepcopy(removal.small).to(memory_format=layout)
        put_back(whole, small, removal.places)
        ends.append(whole.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    name = next(name for name, place in removal.places.items() if place.ndim == 4)
    place, tensor = removal.places[name], removal.small.state_dict()[name]
    assert torch.equal(ends[0][name].flatten()[place], tensor)


def test_a_cost_of_what_is_left_is_the_cost_of_the_whole(net: Traced) -> None:
    macs, arch = Macs(net.axes), net.random(0.5)
    alive = Alive(GatedModel(net.fresh(), net.axes), GatedModel(net.fresh(), net.axes), arch, {})
    cost, sizes = alive.cost(macs), arch.sizes(net.axes.free)
    name = next(iter(sizes))
    assert isinstance(cost, Left)
    assert float(cost({})) == float(macs(sizes))
    column = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert cost.many({name: column}).tolist() == [float(macs({**sizes, name: each})) for each in (1.0, 2.0)]


def test_scores_of_the_whole_put_what_has_gone_last(net: Traced) -> None:
    gated, arch = GatedModel(net.fresh(), net.axes), net.random(0.5)
    scores = {name: torch.rand(len(units)) + 1 for name, units in arch.kept.items()}
    found = Alive(gated, gated, arch, {}).scores(scores)
    for name, units in arch.kept.items():
        assert torch.equal(found[name][list(units)], scores[name])
        gone = [unit for unit in range(net.axes[name].size) if unit not in units]
        assert all(found[name][unit] < min(score.min() for score in scores.values()) for unit in gone)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 2, "once": True, "ema_decay": 0.5},
        pytest.param({"rounds": 3}, marks=pytest.mark.zoo),
        pytest.param({"once": True}, marks=pytest.mark.zoo),
    ],
)
def test_a_search_in_rounds_meets_its_budget_and_leaves_the_weights_it_has_learnt(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), gate="weight")
    budget = Budget("0.4x", Macs(net.axes))
    settings = SearchSettings.model_validate({"warmup": 1, "joint": 3, "freeze": 1, "lr": 0.01, **changes})
    arch = search(gated, loader, budget=budget, settings=settings, run=Run(Accelerator(cpu=True)))
    assert 0.8 * budget.limit < float(budget.cost(arch.sizes(gated.space.free))) <= budget.limit
    small = derive(gated.backbone, net.axes, arch).eval()
    with torch.no_grad():
        assert apart(gated.eval().fixed(arch)(images), small(images)) <= 1e-4
        assert bool((small(images) - derive(net.model, net.axes, arch).eval()(images)).abs().max() > 1e-2), "untrained"


class Pessimistic(Macs):
    """A prediction by which even the smallest network costs as much as the dense one does."""

    def __call__(self, sizes: Sizes) -> Tensor:
        return super().__call__(sizes) + super().__call__({})


def test_a_round_within_which_nothing_is_predicted_to_be_leaves_the_choice_to_the_device(net: Traced) -> None:
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES.float(), LABELS), batch_size=8)
    gated, real = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), gate="weight"), Macs(net.axes)
    budget = Budget.of(0.3 * float(real({})), Pessimistic(net.axes))
    settings = SearchSettings(joint=2, rounds=2, lr=0.01)

    def cost(arch: Arch) -> float:
        return float(real(arch.sizes(gated.space.free)))

    arch = search(gated, loader, budget=budget, settings=settings, run=Run(Accelerator(cpu=True)), cost_of=cost)
    assert cost(arch) <= budget.limit


class Biased(Macs):
    """A prediction that is right of the dense network, and too high the smaller a network is."""

    def __call__(self, sizes: Sizes) -> Tensor:
        dense = super().__call__({})
        share = super().__call__(sizes) / dense
        return dense * (share + 0.1 * (1 - share))


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_remove_what_is_measured_to_be_too_much_and_no_more(net: Traced, rounds: int) -> None:
    """What a round has removed does not come back: by prediction alone, four rounds ended at 0.7 of the limit."""
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES.float(), LABELS), batch_size=8)
    gated, real = GatedModel(net.fresh(), SearchSpace.read("everything", net.axes), gate="weight"), Macs(net.axes)
    budget = Budget.of(0.25 * float(real({})), Biased(net.axes))
    settings = SearchSettings.model_validate(
        {"joint": 4, "rounds": rounds, "schedule": "gradual", "once": True, "freeze": 1, "warmup": 0, "lr": 0.01}
    )

    def cost(arch: Arch) -> float:
        return float(real(arch.sizes(gated.space.free)))

    arch = search(gated, loader, budget=budget, settings=settings, run=Run(Accelerator(cpu=True)), cost_of=cost)
    assert 0.93 * budget.limit < cost(arch) <= budget.limit


@pytest.mark.zoo
def test_what_a_mover_has_closed_for_good_is_removed(net: Traced) -> None:
    gated, budget = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes)), Budget("0.3x", Macs(net.axes))
    settings = SearchSettings(mover=MoverSettings(name="soft_filter"), lr=0.01)
    whole, cut = (copy.deepcopy(gated) for _ in range(2))
    made = [bound("m", movers, settings.mover, 2)(each, Aim(budget, 4, schedules["ghfp"])) for each in (whole, cut)]
    learner = Learner(cut, settings, made[1])
    for epoch in range(4):
        for mover in made:
            mover.after_epoch(epoch)
        if epoch % 2:
            learner.remove(made[1].left())
    live = {name: whole.gate(name).get_buffer("keep").nonzero().flatten().tolist() for name in whole.space.free}
    assert {name: list(learner.alive.kept.kept[name]) for name in live} == live
    assert made[1].gated is learner.gated


def test_what_cannot_go_on_in_a_smaller_model_is_refused(net: Traced) -> None:
    learner = Learner(GatedModel(net.fresh(), net.axes), SearchSettings(optimizer="adafactor", lr=0.01), None)
    F.cross_entropy(learner.gated(IMAGES.float()), LABELS).backward()
    learner.optimizers[0].step()
    with pytest.raises(RecipeError, match=r"search.optimizer: .*search.rounds: 1"):
        learner.remove(net.random(0.5))
    model = net.fresh()
    striped = GatedModel(model, laid_out(model, IMAGES[:2].float(), "stripes"), "skeleton")
    with pytest.raises(SpaceError, match="stripes or candidate operations"):
        Learner(striped, SearchSettings(), None).remove(Arch({next(iter(striped.space.free)): [0]}))


def test_a_gate_of_ones_own_keeps_what_it_has_per_unit() -> None:
    class Own(Gate):
        def __init__(self, size: int, fan_in: Sequence[int]) -> None:
            super().__init__(size, fan_in)
            self.level = torch.nn.Parameter(torch.arange(float(size)))
            self.register_buffer("seen", torch.arange(size))

        def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
            return self.level

        def open(self, score: Tensor) -> Tensor:
            return score.sigmoid()

    small = Own(5, [3]).narrowed(torch.tensor([1, 4]), [torch.tensor([0, 2])])
    assert isinstance(small.level, torch.nn.Parameter)
    assert small.level.tolist() == [1.0, 4.0]
    assert small.seen.tolist() == [1, 4]
    assert (small.size, small.fan_in) == (2, (2,))


def searched_in(folder: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> tuple[Arch, dict[str, Tensor]]:
    """Architecture and weights of a search in two rounds, of one training with an average, stopped at a look."""
    torch.manual_seed(0)
    stop = Stop(after)  # one for all stages
    monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(stop))
    net, data = (
        traced("test_resnet"),
        loaders.load(DataSettings(name="generated", image_size=32, batch_size=32), seed=3),
    )
    gated, budget = (
        GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), "weight"),
        Budget("0.4x", Macs(net.axes)),
    )
    how = {
        "warmup": 0,
        "joint": 2,
        "freeze": 1,
        "rounds": 2,
        "once": True,
        "ema_decay": 0.5,
        "max_steps": 2,
        "lr": 0.05,
    }
    run = Run(Accelerator(cpu=True), 3, folder, Track(folder), identity="test")
    arch = search(gated, data, budget=budget, settings=SearchSettings.model_validate(how), run=run)
    return arch, gated.backbone.state_dict()


@pytest.mark.parametrize("after", few((2, 5, 8), (5,)))  # a look after each step: in each round, and while they settle
def test_a_search_that_is_stopped_in_any_round_ends_in_the_same_bytes(tmp_path, monkeypatch, after: int) -> None:
    whole = searched_in(tmp_path / "whole", monkeypatch, 0)
    with pytest.raises(InterruptedRunError):
        searched_in(tmp_path / "stopped", monkeypatch, after)
    arch, weights = searched_in(tmp_path / "stopped", monkeypatch, 0)
    assert arch == whole[0]
    torch.testing.assert_close(weights, whole[1], rtol=0, atol=0)
    names = {path.stem for path in (tmp_path / "whole" / "checkpoints").iterdir()}
    assert names == {"search-joint-1", "search-joint-2", "search-freeze"}
