"""Our methods: each is a recipe, made of base.yaml and the changes that methods.yaml names, and run as any other."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch

import nas_prune as npr
from nas_prune.base.errors import RecipeError
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.run import pipeline
from nas_prune.run.recipe.recipe import Recipe

from .cells import Cell
from .task import HERE, STAGES, Outcome, Task


@dataclass(frozen=True)
class RecipeMethod:
    """A method of methods.yaml. ``changes``: what it changes, always and by setting."""

    changes: Mapping[str, Mapping[str, Any]]

    def has(self, cell: Cell) -> bool:
        """Whether the method has a meaning in the setting of a cell."""
        return cell.setting in self.changes

    def missing(self) -> str | None:
        """What is to be installed before it can run."""
        return None

    def recipe(self, task: Task, cell: Cell, start: Mapping[str, Any]) -> Recipe:
        """The recipe of a cell; ``start`` says where the weights come from."""
        return task.recipe(cell, {**start, **self.changes["always"], **self.changes[cell.setting]})

    def run(self, task: Task, cell: Cell) -> Outcome:
        """Run the recipe, or go on with a run that was stopped. Its folder is gone afterwards."""
        start, seconds, epochs = _start(task, cell)
        recipe, folder = self.recipe(task, cell, start), task.cache / "runs" / str(cell)
        results = pipeline.run(recipe, folder)
        model = npr.load(folder / "finetuned")
        shutil.rmtree(folder)
        spent = sum(results["seconds"].get(stage, 0.0) for stage in STAGES)
        return Outcome(model, seconds + spent, epochs + epochs_of(recipe))


class Dense:
    """Nothing is pruned: the dense network, to compare accuracy and time with."""

    def has(self, _cell: Cell) -> bool:
        """Everywhere."""
        return True

    def missing(self) -> str | None:
        """Nothing."""
        return None

    def run(self, task: Task, cell: Cell) -> Outcome:
        """The network that ``tuned`` and ``untouched`` begin with, too."""
        path, seconds = task.dense(cell, task.dense_epochs)
        model = task.scene(cell).backbone()
        model.load_state_dict(safetensors.torch.load_file(path))
        return Outcome(model, seconds, task.dense_epochs)


def _start(task: Task, cell: Cell) -> tuple[dict[str, Any], float, int]:
    """What a recipe begins with, and the seconds and epochs that it took."""
    if cell.setting == "scratch":
        return {}, 0.0, 0
    path, seconds = task.dense(cell, task.dense_epochs)
    return {"model.checkpoint": str(path)}, seconds, task.dense_epochs


def epochs_of(recipe: Recipe) -> int:
    """Epochs in which a run of this recipe trains weights."""
    return recipe.dense.epochs + recipe.search.epochs + recipe.finetune.epochs


def recipe_methods() -> dict[str, RecipeMethod]:
    """The methods of methods.yaml."""
    return {name: RecipeMethod(changes) for name, changes in read_mapping(HERE / "methods.yaml", RecipeError).items()}
