"""The recipe that a command line, or the agent of a sweep, asks for."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from nas_prune.base.errors import RecipeError
from nas_prune.cli import agent

if TYPE_CHECKING:
    from nas_prune.run.recipe.recipe import Recipe


def asked(words: Sequence[str], *, models: bool = False) -> "Recipe":
    """The recipe among the words of a command line, with the overrides that stand around it.

    ``models``: the word may also be a model of timm, which gets a recipe made for it.
    """
    from nas_prune.run.recipe import overrides, recipe
    from nas_prune.run.recipe.words import expanded

    values = agent.chosen()
    words = expanded(agent.with_chosen(words, values))
    _check_options(words, [key.name for key in recipe.recipe_keys()])
    changes, names = overrides.parse(words, recipe.Recipe)
    if not names:
        raise RecipeError(f"name a recipe, or the path of a YAML file; there is: {', '.join(recipe.recipes())}")
    if len(names) > 1:
        raise RecipeError(f"cannot read {names[1]!r}; an override is written --key=value, for example --search.joint=5")
    tokens = [change.text for change in changes]
    if models and names[0] not in recipe.recipes() and not names[0].endswith((".yaml", ".yml")):
        from nas_prune.cli.timm import recipe as timm_recipe

        generated = ("--name=calibrate-" + names[0], "--data.name=generated", "--latency.seconds=0.2")
        return timm_recipe.recipe_for(names[0], [*generated, *tokens])
    found = recipe.read(names[0], tokens)
    agent.check(found, values)
    return found


def _check_options(words: Sequence[str], keys: Sequence[str]) -> None:
    """A misspelled option looks like an override; say so before it is called an unknown key."""
    last_names = {key.rsplit(".", 1)[-1] for key in keys} | {key.split(".")[0] for key in keys}
    for word in words:
        option = word.split("=")[0]
        near = get_close_matches(option, ["--out", "--resume", "--no-resume", "--force", "--debug"], n=1)
        if near and option.startswith("--") and option[2:].replace("-", "_") not in last_names:
            raise RecipeError(f"unknown option {option!r}; did you mean '{near[0]}'?")
