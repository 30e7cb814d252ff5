"""Our methods: each is a recipe, made of base.yaml and the changes that methods.yaml names, and run as any other."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nas_prune as npr
from nas_prune.base.errors import RecipeError
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.run import pipeline
from nas_prune.run.recipe.recipe import Recipe

from .cells import Cell
from .task import HERE, TRAINING_IMAGES, Outcome, Task


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
        """Run the recipe. What it takes is told without its calibration; its folder is gone afterwards."""
        start, seconds, epochs = _start(task, cell)
        recipe, folder = self.recipe(task, cell, start), task.cache / "runs" / str(cell)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped nobody knows how long it took
        pipeline.run(recipe, folder, until="calibrate")
        began = time.process_time()
        pipeline.run(recipe, folder, until="finetune")
        seconds += time.process_time() - began
        model = npr.load(folder / "finetuned")
        shutil.rmtree(folder)
        return Outcome(model, seconds, epochs + round(epochs_of(recipe)))


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
        model, seconds = task.trained(cell, task.scene(cell), task.dense_epochs)
        return Outcome(model, seconds, task.dense_epochs)


def _start(task: Task, cell: Cell) -> tuple[dict[str, Any], float, int]:
    """What a recipe begins with, and the seconds and epochs that it took."""
    if cell.setting == "scratch":
        return {}, 0.0, 0
    path, seconds = task.dense(cell, task.dense_epochs)
    return {"model.checkpoint": str(path)}, seconds, task.dense_epochs


def epochs_of(recipe: Recipe) -> float:
    """Epochs in which a run of this recipe trains weights; those that end early (max_steps) count by their steps."""
    whole, search = TRAINING_IMAGES // recipe.data.batch_size, recipe.search
    return recipe.dense.epochs + search.epochs * min(1, (search.max_steps or whole) / whole) + recipe.finetune.epochs


def recipe_methods() -> dict[str, RecipeMethod]:
    """The methods of methods.yaml."""
    return {name: RecipeMethod(changes) for name, changes in read_mapping(HERE / "methods.yaml", RecipeError).items()}
