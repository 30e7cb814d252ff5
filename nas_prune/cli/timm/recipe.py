"""The recipe of a script on one model: what the model knows of its images and its training, and overrides of that."""

from collections.abc import Mapping, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any

import timm
from pydantic import ValidationError

from nas_prune.artifact import folder as artifact
from nas_prune.artifact.export import image_shape
from nas_prune.artifact.timm_models import check_name
from nas_prune.base.errors import RecipeError, UnknownNameError
from nas_prune.base.files.mistakes import explained
from nas_prune.run.checks import check
from nas_prune.run.recipe import overrides
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.inputs import LOCAL
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.train.data.preprocessing import data_keys

_KNOWN = ("data.", "finetune.", "latency.")  # what an artefact's own recipe decides here,
_OTHER = {"data.name", "data.root", "data.workers", "latency.seconds", "finetune.recalibrate_batches"}  # but for these


def recipe_for(name: str, tokens: Sequence[str]) -> Recipe:
    """The recipe of a script: what the model knows about itself, changed by ``--key=value`` overrides."""
    base = {"name": "timm", "model.name": name, "model.pretrained": name.startswith(LOCAL), "track.wandb": "disabled"}
    changes, rest = overrides.parse([*overrides.flags({**base, **_defaults(facts_of(name))}), *tokens], Recipe)
    if rest:
        raise RecipeError(f"cannot read {rest[0]!r}; a key of a recipe is set by key=value, such as data.hflip=0.5")
    try:
        recipe = Recipe.model_validate(overrides.apply({}, changes, Recipe))
    except ValidationError as error:
        raise RecipeError(explained(error, Recipe)) from None
    check(recipe)
    return recipe


def facts_of(name: str) -> dict[str, Any]:
    """``backbone``, ``model_args`` and ``pretrained_cfg`` of a model or of an artefact, which is not built for that."""
    if (folder := folder_of(name)) is not None:
        return artifact.describe(folder)
    if isdir(name):
        raise UnknownNameError(f"{name} is a folder; write --model {LOCAL}{name}")
    check_name(name)
    config = timm.get_pretrained_cfg(name)
    return {"backbone": name, "model_args": {}, "pretrained_cfg": config.to_dict() if config else {}}


def folder_of(name: str, *below: str) -> Path | None:
    """The folder that ``local-dir:FOLDER`` names, or a file in it."""
    return Path(name.removeprefix(LOCAL), *below) if name.startswith(LOCAL) else None


def _defaults(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys that follow from the model: its images, and how it was trained before."""
    config = facts["pretrained_cfg"]
    found: dict[str, Any] = {"latency.seconds": 1.0, "finetune.recalibrate_batches": 0}
    found["data.image_size"] = image_shape(facts)[1]
    found = {f"data.{key}": value for key, value in data_keys(config).items()} | found
    trained = (facts.get("provenance") or {}).get("recipe")
    if isinstance(trained, Mapping):
        names = {key.name for key in recipes.recipe_keys() if key.name.startswith(_KNOWN)} - _OTHER
        found |= {name: trained[name] for name in names & trained.keys()}
    return found
