"""The model that a word of the command line names, with the images that it takes and the space to lay over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from nas_prune.artifact import folder as artifact
from nas_prune.artifact.export import image_shape
from nas_prune.artifact.timm_models import create_model
from nas_prune.base.errors import DataError, NasPruneError, UnknownNameError, shown
from nas_prune.base.random_images import random_images
from nas_prune.base.registry import MODELS, hint
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.train.data import loaders as datasets


@dataclass(frozen=True)
class Subject:
    """A model to look at, the images (c h w) that it takes, and the name of the search space to lay over it."""

    name: str
    model: nn.Module
    image: tuple[int, int, int]
    space: str
    note: str | None = None

    @property
    def images(self) -> Tensor:
        """One random image (1 c h w)."""
        return random_images(1, *self.image)


def find(word: str, *, img_size: int | None, space: str | None, settings: Mapping[str, Any]) -> Subject:
    """The model that a word names: the folder of an artefact, a recipe by name or path, or a model of timm.

    ``img_size``: side of its images in pixels, in place of its own; ``settings``: arguments of ``timm.create_model``.
    """
    path = Path(word)
    is_recipe = path.suffix in (".yaml", ".yml") or word in recipes.recipes()
    if isdir(path) and not is_recipe and ((path / "config.json").exists() or not timm.is_model(word)):
        if settings:
            raise NasPruneError(f"{word} is an artefact, whose arguments are settled; leave out --set")
        facts = artifact.describe(path)
        return Subject(word, artifact.load(path), image_shape(facts, img_size), space or "channels")
    if is_recipe:
        recipe = recipes.read(word)
        given, note = _of_the_data(recipe)
        arguments = {**given, **recipe.model.kwargs, **settings}
        model, image = _create(recipe.model.name, arguments, img_size or recipe.data.image_size)
        return Subject(f"{word}: {recipe.model.name}", model, image, space or recipe.space, note)
    return Subject(word, *_create(word, settings, img_size), space or "channels")


def _create(name: str, settings: Mapping[str, Any], img_size: int | None) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model of timm without its published weights, and its images; one of a fixed size is made for that size."""
    if not timm.is_model(name):
        known = [*timm.list_models(), *recipes.recipes()]
        near = hint(name, known, MODELS, "nas-prune list recipes")
        raise UnknownNameError(f"{shown(name)} is no model of timm, no recipe and no folder{near}")
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    arguments = {**({"img_size": img_size} if img_size and fixed else {}), **settings}
    model = create_model(name, arguments, NasPruneError, "check --set, --img-size")
    config = getattr(model, "pretrained_cfg", None) or {}
    facts = {"backbone": name, "model_args": arguments, "pretrained_cfg": config}
    return model.eval(), image_shape(facts, img_size)


def _of_the_data(recipe: Recipe) -> tuple[dict[str, Any], str | None]:
    """Classes and channels as the recipe's dataset has them, or a note if it is not here; a hub is not asked."""
    if "/" in recipe.data.name:
        classes = recipe.data.classes
        given, whose = ({"num_classes": classes}, "recipe") if classes else ({}, "model")
        return given, f"{recipe.data.name} was not opened, the classes are those of the {whose}"
    try:
        data = datasets.load(recipe.data, seed=recipe.seed)
    except DataError as error:
        return {}, f"the classes are those of the model, not of the data: {error}"
    return {"num_classes": data.classes, "in_chans": data.channels}, None
