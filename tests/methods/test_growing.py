"""Growing regularisation beside its equations: gradients, closed forms, what is picked, and a state that is whole."""

import copy
import math
import re

import pytest
import torch
from accelerate import Accelerator
from asked import ask
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import User, traced

from nas_prune.base.errors import BudgetError, RecipeError, SpaceError, UnknownNameError
from nas_prune.base.files.tensors import misfit
from nas_prune.costs import Budget, Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.growing import APART, Growing
from nas_prune.methods.selectors import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import uniform_widths
from nas_prune.run.checks import check
from nas_prune.run.recipe.recipe import read
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.loop import Run
from nas_prune.train.objective import Objective, task_loss
from nas_prune.train.record.progress import Bars
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings

IMAGES = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Stage(User):
    """A stage of two convolutions that write the same six units, and a hidden width of four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.hidden, self.head = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.inner(x)
        return self.head(self.hidden(x.relu().mean((2, 3))).relu())


@pytest.fixture
def gated() -> GatedModel:
    torch.manual_seed(0)
    net = Stage().double()
    return GatedModel(net, SearchSpace.read("single_units", trace(net, IMAGES)), "mask")


def growing(gated: GatedModel, share: float = 0.5, **options: object) -> Growing:
    """The penalty under a budget of MACs, with a model in sight."""
    penalty = Growing(Budget(f"{share}x", Macs(gated.axes)), **options)
    penalty.begin(gated)
    return penalty


def picked(penalty: Growing, gated: GatedModel) -> dict[str, set[int]]:
    """The units that go, by axis."""
    parts = torch.split(penalty.going, [axis.size for axis in gated.space.free.values()])
    return {name: set(part.nonzero().flatten().tolist()) for name, part in zip(gated.space.free, parts, strict=True)}


def stepped(gated: GatedModel, penalty: Growing, steps: int, loss=lambda: 0.0, **how: float) -> torch.optim.SGD:
    """So many steps of plain gradient descent on a loss and the penalty."""
    optimizer = torch.optim.SGD(gated.parameters(), **{"lr": 0.1, **how})
    for _ in range(steps):
        optimizer.zero_grad()
        (loss() + penalty(gated)).backward()
        optimizer.step()
    return optimizer


def test_the_gradient_is_lambda_times_the_weight_for_what_l1_picks_and_nothing_else(gated: GatedModel) -> None:
    penalty, net = growing(gated, interval=1, step=0.25, kept=-0.5), gated.backbone
    for _ in range(3):
        gated.zero_grad()
        value = penalty(gated)
        value.backward()
    by_hand = {
        "stem": [net.stem.weight[j].abs().sum() + net.inner.weight[j].abs().sum() for j in range(6)],
        "hidden": [net.hidden.weight[j].abs().sum() for j in range(4)],
    }
    gone, total = picked(penalty, gated), 0.0
    left = uniform_widths(gated.space, penalty.budget.cost, penalty.budget.limit)
    assert {name: len(units) for name, units in gone.items()} == {
        "stem": 6 - left["stem"],
        "hidden": 4 - left["hidden"],
    }
    for name, layers in {"stem": (net.stem, net.inner), "hidden": (net.hidden,)}.items():
        order = sorted(range(len(by_hand[name])), key=lambda j: by_hand[name][j].item())
        assert gone[name] == set(order[: len(gone[name])])
        for layer in layers:
            for j, row in enumerate(layer.weight):
                rate = 0.75 if j in gone[name] else -0.5
                torch.testing.assert_close(layer.weight.grad[j], rate * row.detach(), rtol=1e-14, atol=0)
                total += 0.5 * rate * row.square().sum().item()
    assert float(value.detach()) == pytest.approx(total, rel=1e-12)
    assert net.head.weight.grad is None
    assert net.stem.bias.grad is None


def test_without_a_loss_weights_shrink_by_the_product_of_all_steps_up_to_the_ceiling(gated: GatedModel) -> None:
    before = gated.backbone.hidden.weight.detach().clone()
    penalty = growing(gated, interval=3, step=0.3, ceiling=1.0)
    stepped(gated, penalty, 30)
    rates = [min(0.3 * (1 + number // 3), 1.2) for number in range(30)]
    assert penalty.grown == math.ceil(1.0 / 0.3) == 4
    assert penalty.settled
    factor = math.prod(1 - 0.1 * rate for rate in rates)
    gone = picked(penalty, gated)["hidden"]
    for unit, (now, then) in enumerate(zip(gated.backbone.hidden.weight.detach(), before, strict=True)):
        torch.testing.assert_close(now, (factor if unit in gone else 1.0) * then, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("step", "ceiling", "updates"), [(0.1, 0.3, 3), (0.25, 1.0, 4), (0.7, 1.0, 2), (2.0, 1.0, 1)])
def test_lambda_is_raised_as_often_as_it_takes(gated: GatedModel, step: float, ceiling: float, updates: int) -> None:
    first = growing(gated, interval=2, step=step, ceiling=ceiling)
    second = growing(gated, interval=2, step=step, ceiling=2 * ceiling, pick_step=step, pick_ceiling=ceiling)
    for _ in range(2 * (2 * updates + 3)):
        first(gated)
        second(gated)
    assert (first.raised, first.grown) == (0, updates)
    assert second.raised == updates
    assert float(first.factor().max()) == pytest.approx(step * updates)
    assert float(second.factor().max()) == pytest.approx(step * (updates + second.grown))
    assert 0 <= float(second.factor().max()) - 2 * ceiling < step * (1 + 1e-9) or second.grown == 1


def curved(gated: GatedModel, curvature: list[float], centre: Tensor):
    """The loss 1/2 sum of h_j |W_j - W*_j|^2 of the hidden width, written out."""
    h = torch.tensor(curvature, dtype=torch.float64)
    return lambda: 0.5 * (h[:, None] * (gated.backbone.hidden.weight - centre).square()).sum()


def test_at_rest_a_weight_is_its_share_of_curvature_away_from_zero(gated: GatedModel) -> None:
    centre, h = torch.ones(4, 6, dtype=torch.float64), [0.2, 1.0, 5.0, 10.0]
    penalty = growing(gated, interval=1000, pick_step=0.1, pick_ceiling=0.1)
    stepped(gated, penalty, 1000, curved(gated, h, centre), lr=0.15)
    for row, each in zip(gated.backbone.hidden.weight.detach(), h, strict=True):
        torch.testing.assert_close(row, centre[0] * each / (each + 0.1), rtol=1e-12, atol=0)


def test_growing_for_all_picks_by_curvature_where_magnitude_picks_what_is_least(gated: GatedModel) -> None:
    centre = torch.tensor([1.02, 1.0, 1.01, 1.03], dtype=torch.float64)[:, None].expand(4, 6)
    with torch.no_grad():
        gated.backbone.hidden.weight.copy_(centre)
    loss, found = curved(gated, [0.1, 5.0, 0.2, 5.0], centre), {}
    for ceiling in (0.0, 0.5):
        trial = copy.deepcopy(gated)
        loss = curved(trial, [0.1, 5.0, 0.2, 5.0], centre)
        penalty = growing(trial, 0.4, interval=10, step=0.1, pick_step=0.05, pick_ceiling=ceiling)
        stepped(trial, penalty, 200, loss)
        found[ceiling] = picked(penalty, trial)["hidden"]
    assert found == {0.0: {1, 2}, 0.5: {0, 2}}


@pytest.mark.parametrize("selector", ["uniform", "optimal"])
@pytest.mark.parametrize("ceiling", [0.0, 0.1])
def test_afterwards_magnitude_takes_what_was_not_picked(gated: GatedModel, selector: str, ceiling: float) -> None:
    labels = torch.arange(6)
    penalty = growing(gated, interval=2, step=0.2, pick_step=0.05, pick_ceiling=ceiling, selector=selector)
    stepped(gated, penalty, 140, lambda: F.cross_entropy(gated(IMAGES), labels))
    assert penalty.settled
    assert bool((penalty.apart >= APART).all()) or float(penalty.factor().max()) >= 1.0
    scores, limit = criteria["magnitude"](gated, [], norm=1), penalty.budget.limit
    kept = ask(selectors[selector], scores, penalty.budget.cost, limit, gated.space).kept
    gone = picked(penalty, gated)
    assert sum(map(len, gone.values())) >= 2
    assert {name: set(range(gated.axes[name].size)) - set(units) for name, units in kept.items()} == gone


@pytest.mark.parametrize("selector", ["uniform", "optimal"])
def test_where_the_prediction_refuses_all_what_is_smallest_stays(gated: GatedModel, selector: str) -> None:
    penalty = Growing(Budget.of(1.0, Macs(gated.axes)), interval=1, step=0.2, selector=selector)
    stepped(gated, penalty, 2)
    sizes = {name: axis.size - len(picked(penalty, gated)[name]) for name, axis in gated.space.free.items()}
    assert sizes == dict(gated.space.minimum)


def test_a_selector_that_picks_nothing_for_another_reason_is_heard(gated: GatedModel) -> None:
    def hopeless(_: Question) -> Decision:
        raise BudgetError("nothing that I know")

    penalty = growing(gated)
    penalty.select = hopeless
    with pytest.raises(BudgetError, match="nothing that I know"):
        penalty(gated)


@pytest.mark.parametrize("stop", [1, 7, 14, 30, 70])
def test_a_state_that_is_put_back_goes_on_to_the_same_bytes(gated: GatedModel, stop: int) -> None:
    options = {"interval": 3, "step": 0.2, "pick_step": 0.05, "pick_ceiling": 0.15, "kept": -1e-3}
    labels, how = torch.arange(6), {"lr": 0.05, "momentum": 0.9}
    ends = []
    penalty = growing(gated, **options)
    optimizer = stepped(gated, penalty, stop, lambda: F.cross_entropy(gated(IMAGES), labels), **how)
    for fresh in (False, True):
        model, term = copy.deepcopy(gated), copy.deepcopy(penalty)
        if fresh:
            term = growing(model, **options)
            assert misfit(term.state_dict(), penalty.state_dict()) == ""
            term.load_state_dict(penalty.state_dict())
        descent = torch.optim.SGD(model.parameters(), **how)
        descent.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(30):
            descent.zero_grad()
            (F.cross_entropy(model(IMAGES), labels) + term(model)).backward()
            descent.step()
        ends.append({**model.state_dict(), **{f"term.{key}": value for key, value in term.state_dict().items()}})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert int(ends[0]["term._extra_state"][0]) == stop + 30


def test_a_round_begins_anew_and_an_objective_tells_the_model_before_a_state_is_put_back(gated: GatedModel) -> None:
    before = growing(gated, interval=1)
    before(gated)
    after = Growing(before.budget)
    after.follow(before)
    assert (after.steps, after.grown, after.going) == (0, 0, None)
    objective = Objective(task_loss(SearchSettings()), penalties=[after], gated=gated)
    assert objective.state_dict()["penalties.0.going"].shape == (10,)
    untouched = after.eval()(gated).detach()
    assert (float(untouched), after.steps) == (0.0, 0)


def test_a_weight_of_two_axes_has_the_larger_of_their_lambdas() -> None:
    net = traced("test_vit")
    gated = GatedModel(net.double(), net.axes, "mask")
    penalty, generator = growing(gated, step=0.25, kept=-0.5), torch.Generator().manual_seed(0)
    penalty.grown, penalty.settled = 3, True
    penalty.going = torch.rand(len(penalty.going), generator=generator) < 0.5
    penalty(gated).backward()
    written = [name for name in gated.space.free if gated.writers[name]]
    rates = dict(zip(written, penalty.factor().split([net.axes[name].size for name in written]), strict=True))
    for number, block in enumerate(gated.backbone.blocks):
        name, attention = f"blocks.{number}.attn.qkv", block.attn
        heads, dims = rates[f"{name}.head"], rates[f"{name}.head_dim"]
        for row, (weight, gradient) in enumerate(zip(attention.qkv.weight, attention.qkv.weight.grad, strict=True)):
            rate = max(heads[row // len(dims) % len(heads)], dims[row % len(dims)])
            torch.testing.assert_close(gradient, rate * weight.detach(), rtol=1e-12, atol=1e-15)
        for unit, rate in enumerate(rates[f"blocks.{number}.mlp.fc1"]):
            weight = block.mlp.fc1.weight
            torch.testing.assert_close(weight.grad[unit], rate * weight[unit].detach(), rtol=1e-12, atol=0)


def test_growth_that_is_cut_short_is_told(gated: GatedModel) -> None:
    penalty = growing(gated, interval=3, step=0.2, pick_step=0.05, pick_ceiling=0.1)
    assert penalty.remark() == "", "nothing has been trained"
    said = []
    for _ in range(30):
        penalty(gated)
        said.append(penalty.remark())
    ended = said.index("")  # 2 + 5 updates, the last of them in step 19
    assert ended == 18
    assert set(said[ended:]) == {""}
    assert re.match(r"growing: .* 13 steps, .* lambda is 0.7 of 1.1, .*up to 6 steps more.*search.joint", said[12])


def test_what_is_to_be_said_of_a_penalty_is_said_when_the_training_ends(gated: GatedModel) -> None:
    told: list[str] = []

    class Listening(Bars):
        def say(self, text: str) -> None:
            told.append(text)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, torch.arange(6)), batch_size=3)
    for step in (0.1, 1.0):
        budget = Budget("0.6x", Macs(gated.axes))
        how = {"criterion": "magnitude", "penalties": ["growing"], "warmup": 0, "joint": 1, "freeze": 0, "lr": 0.01}
        run = Run(Accelerator(cpu=True), bars=Listening())
        penalties, settings = [Growing(budget, interval=1, step=step)], SearchSettings.model_validate(how)
        search(gated, loader, budget=budget, penalties=penalties, settings=settings, run=run)
    assert ["growing" in each for each in told] == [True], "once, of the one that did not come to its end"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.optimizer=adamw", "search.optimizer: .* growing"),
        ("search.clip_grad=1.0", "search.clip_grad: .* growing"),
    ],
)
def test_steps_that_are_out_of_proportion_are_refused(change: str, message: str) -> None:
    check(read("smoke/fashion_mnist_resnet18_greg1", ["--search.optimizer=momentum"]))
    with pytest.raises(RecipeError, match=message):
        check(read("smoke/fashion_mnist_resnet18_greg1", [f"--{change}"]))


def test_a_penalty_on_weights_asks_for_joint_training_under_a_criterion() -> None:
    plain = {"criterion": "magnitude"}
    assert not SearchSettings.model_validate(plain).learns
    assert SearchSettings.model_validate({**plain, "penalties": [{"name": "growing"}]}).learns


def test_what_no_weight_writes_and_a_selector_that_is_not_there_are_errors() -> None:
    net = Stage().double()
    axes = trace(net, IMAGES)
    with pytest.raises(UnknownNameError, match="uniform"):
        Growing(Budget("0.5x", Macs(axes)), selector="unifrom")
    gated = GatedModel(net, axes, "mask")
    gated.writers = {}
    with pytest.raises(SpaceError, match="no weight writes"):
        growing(gated)
