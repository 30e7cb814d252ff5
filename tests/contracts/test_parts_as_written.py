"""How every registered part is written: options by name, typed, with a default; it says what it is; it is listed."""

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

import pytest
from pydantic import TypeAdapter

from nas_prune.base.parts import OUTSIDE
from nas_prune.cli.list import listings
from nas_prune.costs import Predictor, costs, predictors
from nas_prune.methods.compensations import compensations
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gates import gates
from nas_prune.methods.losses import losses
from nas_prune.methods.movers import movers
from nas_prune.methods.penalties import penalties
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import selectors
from nas_prune.ops import Operation, operations

# kind -> registry, and how many arguments the loop gives to a part before its options
KINDS: dict[str, tuple[Mapping[str, Any], int]] = {
    "gates": (gates, 2),
    "criteria": (criteria, 2),
    "selectors": (selectors, 1),
    "compensations": (compensations, 3),
    "movers": (movers, 2),
    "schedules": (schedules, 2),
    "penalties": (penalties, 1),
    "losses": (losses, 1),
    "operations": (operations, 0),
    "costs": (costs, 1),
    "predictors": (predictors, 3),
}
NEEDED = {
    "penalties structural": ["layers"],
    "losses auxiliary": ["module"],
}  # options without a default: there is none that makes sense

every = pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (parts, _) in KINDS.items() for name in parts]
)


def options(kind: str, name: str) -> list[Parameter]:
    """The parameters of a part that a recipe may give."""
    parts, given = KINDS[kind]
    part = parts[name]
    if isinstance(part, type) and issubclass(part, Predictor):
        given = 2  # sizes and milliseconds, of which a recipe knows nothing
    return list(inspect.signature(part, eval_str=True).parameters.values())[given:]


@every
def test_options_are_given_by_name_and_are_typed(kind: str, name: str) -> None:
    found = options(kind, name)
    assert [each.name for each in found if each.kind is not Parameter.KEYWORD_ONLY] == []
    assert [each.name for each in found if each.annotation in (Parameter.empty, Any)] == []
    checked = [TypeAdapter(each.annotation) for each in found if kind not in ("costs", "predictors")]
    assert len(checked) == len(found) or kind in ("costs", "predictors"), "pydantic knows how to check it"


@every
def test_options_have_defaults(kind: str, name: str) -> None:
    bare = [each.name for each in options(kind, name) if each.default is Parameter.empty]
    assert kind == "operations" or bare == NEEDED.get(f"{kind} {name}", [])  # operations are built of plain data


@every
def test_a_part_says_what_it_is_and_what_comes_back(kind: str, name: str) -> None:
    part = KINDS[kind][0][name]
    calls = [part] if not isinstance(part, type) else [part, *called(part)]
    assert [each.__qualname__ for each in calls if not (inspect.getdoc(each) or "").strip()] == []
    assert inspect.getmodule(part).__doc__


def called(part: type) -> list[Callable[..., object]]:
    """The methods of a class that the loop calls, as far as they are of its own."""
    names = ("__call__", "forward", "score", "open", "predict", "begin_epoch", "after_step", "after_epoch", "like")
    own = [vars(part).get(name) for name in names]
    return [getattr(each, "__func__", each) for each in own if each is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_recipe_can_name_is_listed(kind: str) -> None:
    rows = dict(listings()[kind]())
    parts = KINDS[kind][0]
    can = {name for name in parts if kind != "operations" or parts[name].like.__func__ is not Operation.like.__func__}
    assert rows.keys() == can
    assert all(rows.values())
    told = {name: [each.name for each in options(kind, name)] for name in can if kind not in ("operations", "costs")}
    assert [name for name, known in told.items() if any(f"{each}" not in rows[name] for each in known)] == []


@every
def test_a_part_lies_in_the_folder_of_its_kind(kind: str, name: str) -> None:
    package = {"costs": "costs", "predictors": "costs", "operations": "ops"}.get(kind, f"methods.{kind}")
    assert KINDS[kind][0][name].__module__.startswith((f"nas_prune.{package}.", OUTSIDE))


def test_every_kind_that_can_be_listed_is_looked_at() -> None:
    assert listings().keys() - KINDS.keys() == {"recipes", "sweeps", "spaces", "datasets", "models", "methods"}


@pytest.mark.parametrize("name", KINDS["criteria"][0])
def test_a_criterion_says_what_it_costs(name: str) -> None:
    assert "Cost: " in dict(listings()["criteria"]())[name]
