"""Laws of a rehearsal: what a part has against a model is said by it, and said without a trace and without delay."""

import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from nas_prune.base.errors import RecipeError, SpaceError
from nas_prune.base.registry import Registry
from nas_prune.costs import Budget, Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.compensations import compensations
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, movers
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import Question, selectors
from nas_prune.run.calibration.sampling import smallest
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.rehearsal import parts
from nas_prune.run.rehearsal.for_a_while import for_a_while
from nas_prune.run.rehearsal.rehearse import rehearse
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.settings import CriterionSettings

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(torch.cat([IMAGE, IMAGE.flip(-1)]), torch.zeros(2, dtype=torch.long))]
SMOKE = "smoke/fashion_mnist_resnet18_taylor"


class Plain(nn.Sequential):
    """Convolutions without a norm."""

    def __init__(self) -> None:
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), *pooled)


class Flat(nn.Sequential):
    """A perceptron, which reads no maps."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 10))


class Branching(nn.Module):
    """Two residual branches, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) -> logits (b k)."""
        x = self.stem(x).relu()
        x = x + self.first(x)
        return self.head((x + self.second(x)).mean((2, 3)))


PLACES = {"plain": (Plain, "channels"), "flat": (Flat, "everything"), "branching": (Branching, "everything")}
PLACES |= {"branches alone": (Branching, "depth")}


@cache
def place(name: str) -> tuple[nn.Module, SearchSpace]:
    """A small model, and a search space over it."""
    torch.manual_seed(0)
    build, space = PLACES[name]
    model = build()
    return model, SearchSpace.read(space, trace(model, IMAGE))


def objection(ask: Callable[[], object]) -> str:
    """What speaks against it; nothing where nothing does."""
    try:
        ask()
    except (SpaceError, RecipeError) as error:
        return str(error)
    return ""


def of_criterion(name: str, gated: GatedModel) -> None:
    """A criterion at work."""
    criteria[name](gated, BATCHES)


def of_selector(name: str, gated: GatedModel) -> None:
    """A selector at work."""
    cost = Macs(gated.axes)
    limit = float(cost({}))
    selectors[name](Question(gated.scores(), cost, limit, gated.space, gated=gated, batches=BATCHES))


def of_compensation(name: str, gated: GatedModel) -> None:
    """A compensation at work."""
    compensations[name](gated, smallest(gated.space), BATCHES)


def of_mover(name: str, gated: GatedModel) -> None:
    """A mover that begins."""
    movers[name](gated, Aim(Budget("1x", Macs(gated.axes)), 1, schedules["ghfp"]))


KINDS = {
    "criterion": (criteria, of_criterion),
    "selector": (selectors, of_selector),
    "compensation": (compensations, of_compensation),
    "mover": (movers, of_mover),
}
EVERY = [(kind, name) for kind, (registry, _) in KINDS.items() for name in registry]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_what_a_part_says_at_work_is_said_in_the_rehearsal(kind: str, name: str, where: str) -> None:
    model, space = place(where)
    others = {"criterion": ["--search.selector=ranked"]}.get(kind, ["--search.criterion=random"])
    recipe = recipes.read(SMOKE, ["--budget.cost=macs", *others, f"--search.{kind}={name}"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn, hooks = torch.get_rng_state(), [dict(each._forward_hooks) for each in model.modules()]
    said = objection(lambda: rehearse(recipe, model, space, IMAGE))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert hooks == [dict(each._forward_hooks) for each in model.modules()]
    assert said.removeprefix(f"search.{kind}: ") == objection(
        lambda: KINDS[kind][1](name, GatedModel(model, space, "mask").eval())
    )


def test_some_parts_have_something_against_some_models() -> None:
    """Of the places above, each is nothing for some criterion: the law says something."""
    for where in ("plain", "flat", "branches alone"):
        model, space = place(where)
        gated = GatedModel(model, space, "mask").eval()
        assert any(objection(lambda name=name, gated=gated: of_criterion(name, gated)) for name in criteria)


def test_what_takes_long_is_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(gated: GatedModel, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        while True:
            gated(batches[0][0])

    fresh = Registry("criterion", None)
    fresh.register("endless")(endless)
    monkeypatch.setattr(parts, "criteria", fresh)
    monkeypatch.setattr(parts, "SECONDS", 0.2)
    recipe, began = recipes.read(SMOKE, ["--budget.cost=macs"]), time.monotonic()
    recipe = recipe.model_copy(
        update={"search": recipe.search.model_copy(update={"criterion": CriterionSettings(name="endless")})}
    )
    rehearse(recipe, *place("branching"), IMAGE)
    assert time.monotonic() - began < 10


def test_what_is_short_comes_to_its_end() -> None:
    assert for_a_while(lambda: torch.ones(2).sum(), 60.0)
    assert not for_a_while(lambda: torch.ones(2).sum(), 0.0)


@pytest.mark.parametrize(("computes", "ends"), [(False, True), (True, False)])
def test_whatever_is_left_in_the_middle_gradients_are_recorded_again(computes: bool, ends: bool) -> None:
    """Leaving ``no_grad`` is a call of torch, too; where that was the first one late, nothing could be trained."""

    def ask() -> None:
        with torch.no_grad():
            time.sleep(0.02)
            if computes:
                torch.ones(1) + 1

    assert for_a_while(ask, 0.01) is ends
    assert torch.is_grad_enabled()
