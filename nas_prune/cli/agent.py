"""What a W&B agent is owed by a run that it starts: the values that it chose, a folder of its own, an honest end.

The agent says who the run is in the environment (``WANDB_SWEEP_ID``, ``WANDB_RUN_ID``), and writes the values of the
sweep to ``WANDB_SWEEP_PARAM_PATH``. W&B records these as the run's config whatever the command line says, so they are
what runs: they come first, the words of the command line after them, and where the two disagree, nothing runs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nas_prune.base.errors import BudgetError, InterruptedRunError, NasPruneError, RecipeError, shown
from nas_prune.base.launched import is_first
from nas_prune.base.sweeps import RUN, VALUES, in_a_sweep

if TYPE_CHECKING:
    from nas_prune.run.recipe.recipe import Recipe


def chosen() -> dict[str, Any]:
    """The values that the agent chose, by key; none outside of a sweep. Raises RecipeError for an unreadable file."""
    from nas_prune.base.files.yaml_text import read_mapping

    path = os.environ.get(VALUES)
    if not in_a_sweep() or not path or not Path(path).is_file():
        return {}
    rows = read_mapping(Path(path), RecipeError).items()
    return {str(key): row["value"] for key, row in rows if isinstance(row, dict) and "value" in row}


def with_chosen(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The words of the command line, after those that the agent's values stand for."""
    from nas_prune.run.recipe.words import as_words

    named = any(key == "recipe" for key in values) and not any("recipe=" in word for word in words)
    return [*as_words({key: value for key, value in values.items() if key != "recipe" or named}), *words]


def check(recipe: "Recipe", values: Mapping[str, Any]) -> None:
    """Raise RecipeError, with the key, where a recipe is not what the agent chose and W&B records."""
    from nas_prune.run.recipe.recipe import changed
    from nas_prune.run.recipe.words import as_words

    for key, value in values.items():
        if key not in ("recipe", "_wandb") and changed(recipe, as_words({key: value})) != recipe:
            raise RecipeError(
                f"the sweep has {key}: {shown(value)}, and the command line says otherwise: W&B would record what did "
                f"not run. Take --{key} out of `command:`, or out of `parameters:`"
            )


def default_folder(name: str) -> Path:
    """Where a run of this name goes: every run of a sweep has a folder of its own."""
    run = os.environ.get(RUN)
    return Path("runs") / name / run if run else Path("runs") / name


def check_folder(folder: Path) -> None:
    """Raise RecipeError where a folder holds the record of another W&B run than the one that the agent started."""
    from nas_prune.train.record.track import known_run

    run, known = os.environ.get(RUN), known_run(folder)
    if run is not None and known is not None and run != known:
        raise RecipeError(
            f"{folder} holds the W&B run {known}, and this one is {run}: its figures would be another's. Leave --out "
            "out, so that every run of a sweep gets a folder of its own, or write --out runs/x/${envvar:WANDB_RUN_ID}"
        )


@contextmanager
def told() -> Iterator[None]:
    """What ends a run of a sweep is told to W&B, too; a budget that nothing meets is a result, and no failure."""
    try:
        yield
    except InterruptedRunError:
        raise
    except NasPruneError as error:
        if not in_a_sweep():
            raise
        from nas_prune.train.record.track import tell_end

        if not error.told and is_first():
            tell_end(error)
        if not isinstance(error, BudgetError):
            raise
        typer.echo(f"infeasible: {error}", err=True)
