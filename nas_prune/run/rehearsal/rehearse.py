"""A rehearsal: all that a recipe will ask of a model in hours, asked of a copy now."""

import copy

import torch
from torch import Tensor, nn

from nas_prune.base.errors import RecipeError
from nas_prune.costs import Budget, costs
from nas_prune.derivation.removal import irremovable
from nas_prune.derivation.timm_facts import read_by_classifier
from nas_prune.methods.gated import GatedModel
from nas_prune.run import build
from nas_prune.run.checks import blaming, check_worth
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.rehearsal.parts import rehearse_parts
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data.order import drawing
from nas_prune.train.finetune import restart
from nas_prune.train.objective import penalty_terms, task_objective


def rehearse(recipe: Recipe, backbone: nn.Module, space: SearchSpace, images: Tensor) -> None:
    """Gates, penalties, losses, a start from scratch, and every part that decides about units, on an image (1 c h w)
    and a copy of the backbone: raises now what these would say in hours, or RecipeError.
    """
    with blaming("gate.options"), torch.no_grad():
        trial = build.gated(recipe, copy.deepcopy(backbone), space).eval()
        trial(images)
    _check_order(recipe, backbone, space)
    with drawing(recipe.seed, "trial"):
        for stage in (recipe.search, recipe.finetune):
            task_objective(stage).begin(backbone, lambda: images)
    if recipe.finetune.distill_features:
        read_by_classifier(backbone, space.axes, Arch())
    if recipe.finetune.from_scratch:
        restart(copy.deepcopy(backbone), recipe.seed)
    _look(recipe, trial)
    rehearse_parts(recipe, trial, torch.cat([images, images.flip(-1)]))


def _look(recipe: Recipe, trial: GatedModel) -> None:
    """A look of each penalty at a model that has just looked at an image."""
    limit = Budget("0.5x", costs["macs"](trial.axes))
    for number, term in enumerate(penalty_terms(recipe.search, limit) if recipe.search.learns else ()):
        with blaming(key := f"search.penalties.{number}.options"), torch.no_grad():
            check_worth(key, term.eval()(trial))


def _check_order(recipe: Recipe, backbone: nn.Module, space: SearchSpace) -> None:
    """Raise RecipeError where one stage leaves what the next one cannot take."""
    why = irremovable(backbone, space) if recipe.search.rounds > 1 else None
    if why is not None:
        raise RecipeError(f"search.rounds: what a round has closed cannot be removed: {why}; set search.rounds: 1")
    wider = [name for name, axis in space.free.items() if axis.given]
    if wider and recipe.dense.epochs:
        raise RecipeError(
            f"space: {recipe.space} widens {wider[0]}, which comes after dense training: train the dense network by "
            "itself, give it as model.checkpoint, and set dense.epochs: 0"
        )
