"""Objections: what a recipe, or a model, has against a method, told before the first cell is run.

Of methods that are named, each has to go: the first objection ends the comparison. Where all methods are asked for,
those that cannot go are told, and fail, and the others are run.
"""

from collections.abc import Callable, Collection

from rich.console import Console

from nas_prune.base.errors import InterruptedRunError, InUseError, NasPruneError, RecipeError, StorageError, first_line
from nas_prune.run import build, pipeline
from nas_prune.run.checks import check, check_names
from nas_prune.run.compare.cells import DENSE, Cell
from nas_prune.run.compare.plan import Plan
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.rehearsal.rehearse import rehearse
from nas_prune.train.record.progress import Bars

STOPPING = (InterruptedRunError, StorageError, InUseError)  # what is no method's fault


def objections(plan: Plan, left: Collection[str]) -> dict[str, str]:
    """Of the methods that are ``left`` to be run, those that cannot go, and why.

    Raises what speaks against the dense network, and RecipeError, naming the method, unless whichever can go is asked.
    """
    found = dict[str, str]()

    def asked(name: str, look: Callable[[list[Recipe]], None]) -> None:
        other = plan.methods[name].units_of
        try:
            if other in found:
                raise RecipeError(f"it takes the widths of {other}, which cannot go: {found[other]}")
            look(plan.rehearsed(name))
        except STOPPING:
            raise
        except NasPruneError as error:
            if not plan.every:
                raise RecipeError(f"method {name}: {error}") from error
            found[name] = first_line(error)

    named = [name for name in plan.methods if name in left]
    for name in named:
        asked(name, _checked)
    if left:
        stage = _Stage(build.resolved(plan.recipe(Cell(DENSE, "", plan.seeds[0]))))
        for name in named:
            if name not in found:
                asked(name, lambda recipes: stage.rehearse(recipes[0]))
    return found


def _checked(recipes: list[Recipe]) -> None:
    """Raise what can be said of recipes without a model."""
    for recipe in recipes:
        check(recipe)
        check_names(recipe)


class _Stage:
    """The data and the model of a comparison, with each search space that one of its methods has laid over it."""

    def __init__(self, dense: Recipe) -> None:
        check(dense)
        check_names(dense)
        with Bars(Console(stderr=True)) as bars:
            self.data, model, space = pipeline.at_hand(dense, bars, build.accelerator(dense).device)
        self.laid = {_of(dense): (model, space)}

    def rehearse(self, recipe: Recipe) -> None:
        """Raise what the model has against a recipe."""
        images = build.example(recipe, self.data, batch=1)
        if _of(recipe) not in self.laid:
            model = build.model(recipe.model, self.data)
            self.laid[_of(recipe)] = model, pipeline.laid(recipe, model, images)
        rehearse(recipe, *self.laid[_of(recipe)], images)


def _of(recipe: Recipe) -> str:
    """What decides about a model and its search space."""
    return f"{recipe.space} {recipe.model.model_dump_json()}"
