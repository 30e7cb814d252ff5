"""Build: the one place where the names in a recipe become objects."""

import copy
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import Tensor, nn

from nas_prune.artifact.given_weights import load_given
from nas_prune.artifact.origin import Origin
from nas_prune.artifact.timm_models import check_name, create_model
from nas_prune.base.errors import ArtifactError, RecipeError, RuntimeMissingError, first_line, shown
from nas_prune.base.parts import bound, typed
from nas_prune.base.random_images import random_images
from nas_prune.costs import Budget, CostModel, Predictor, costs
from nas_prune.costs.timing.runtimes import missing
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.selectors import Selector, selectors
from nas_prune.run.checks import OVERLAY
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.recipe.settings import ModelSettings
from nas_prune.tracing import Axes
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data.loaders import Data
from nas_prune.train.data.order import drawing
from nas_prune.train.data.preprocessing import data_keys, tell
from nas_prune.train.data.room import check_room
from nas_prune.train.descent import Pace
from nas_prune.train.objective import task_objective
from nas_prune.train.settings import OptimSettings, SearchSettings

PATIENCE = timedelta(days=1)  # while one process measures, the others wait


def accelerator(recipe: Recipe) -> Accelerator:
    """Device, precision and processes; seeds every generator. Raises RecipeError for what this machine cannot do.

    Accelerate has one precision in a process: a later recipe's takes the place of an earlier one's.
    """
    set_seed(recipe.seed)
    AcceleratorState._reset_state()
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=PATIENCE)]
    try:
        made = Accelerator(cpu=recipe.device == "cpu", mixed_precision=recipe.precision, kwargs_handlers=handlers)
    except ValueError as error:
        raise RecipeError(f"precision: {recipe.precision} cannot be had here: {error}") from error
    if recipe.device not in ("auto", made.device.type):
        raise RecipeError(f"device: torch sees no {recipe.device} here, only {made.device.type}; set device: auto")
    if recipe.precision == "fp16" and made.device.type == "cpu":
        raise RecipeError("precision: no processor trains in fp16, only a GPU; set precision: bf16, or no")
    return made


def pace(recipe: Recipe) -> Pace:
    """What makes the recipe's training faster. Raises RuntimeMissingError where torch.compile lacks a compiler."""
    lacking = missing("compile") if recipe.compile else None
    if lacking is not None:
        raise RuntimeMissingError(f"compile: {lacking}")
    return Pace(recipe.compile, recipe.channels_last)


def model_kwargs(settings: ModelSettings, data: Data) -> dict[str, Any]:
    """Arguments of timm.create_model: the recipe's, and what the data decides. Raises RecipeError if they disagree."""
    decided = {"num_classes": data.classes, "in_chans": data.channels}
    for name, value in decided.items():
        if settings.kwargs.get(name, value) != value:
            raise RecipeError(
                f"model.kwargs.{name} is {shown(settings.kwargs[name])}, but {data.name} has {value}; leave it out: "
                "the data decides"
            )
    return {**decided, **settings.kwargs}


def origin(settings: ModelSettings, data: Data) -> tuple[str, dict[str, Any]]:
    """The backbone as an artefact names it: what tells timm where weights come from is no part of it."""
    given = model_kwargs(settings, data).items()
    return settings.name, {name: value for name, value in given if not name.startswith("pretrained")}


def model(settings: ModelSettings, data: Data, say: Callable[[str], object] = len) -> nn.Module:
    """The timm backbone. Raises UnknownNameError or RecipeError, saying what timm said.

    ``say``: is told, in a line, which weights of one's own were found.
    """
    check_name(settings.name)
    arguments, published = model_kwargs(settings, data), settings.pretrained and settings.checkpoint is None
    fetched = published and OVERLAY not in arguments
    advice = "its published weights could not be fetched" if fetched else "check model.kwargs"
    created = create_model(settings.name, arguments, RecipeError, advice, pretrained=published)
    if settings.checkpoint is not None:
        say(load_given(created, Path(settings.checkpoint), head=settings.checkpoint_head))
    tell(created, data.seen)
    _check_origin(created, settings, data)
    return created


def _check_origin(created: nn.Module, settings: ModelSettings, data: Data) -> None:
    """Raise RecipeError for arguments with which no artefact could be saved, hours later."""
    try:
        Origin.of(created, *origin(settings, data)).build("meta")
    except ArtifactError as error:
        raise RecipeError(f"model.kwargs could not be part of the derived model: {error}") from error


def resolved(recipe: Recipe) -> Recipe:
    """The recipe; what it does not say about images is as it was for the weights that it starts from, if for any."""
    if not recipe.model.pretrained and recipe.model.checkpoint is None:
        return recipe
    config = timm.get_pretrained_cfg(recipe.model.name) if timm.is_model(recipe.model.name) else None
    known = data_keys({**(config.to_dict() if config else {}), **recipe.model.kwargs.get(OVERLAY, {})})
    new = {key: value for key, value in known.items() if key not in recipe.data.model_fields_set}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=new)}) if new else recipe


def gated(recipe: Recipe, backbone: nn.Module, space: SearchSpace) -> GatedModel:
    """The backbone with the recipe's gates."""
    options = typed("gate.options", gates, recipe.gate.name, 2, recipe.gate.options)
    kinds = {
        kind: (own.name, typed(f"gate.kinds.{kind}.options", gates, own.name, 2, own.options))
        for kind, own in recipe.gate.kinds.items()
    }
    with drawing(recipe.seed, "gates"):  # the same ones, whether the backbone was trained just now or long ago
        return GatedModel(backbone, space, recipe.gate.name, options=options, kinds=kinds)


def check_memory(
    recipe: Recipe, model: nn.Module, data: Data, batches: Mapping[str, int], device: torch.device
) -> None:
    """Raise RecipeError if batches of images, by the key that says how many, have no room on the device."""
    image, share = (data.channels, *[recipe.data.image_size] * 2), 1.0 if recipe.precision == "no" else 0.5
    check_room(model, image, batches, device, share=share)


def try_step(recipe: Recipe, backbone: nn.Module, data: Data, stage: OptimSettings) -> None:
    """One training step of a copy, as this stage takes it, on one or two images.

    Raises RecipeError where that cannot be, saying what torch said and which keys decide about it.
    """
    batch = min(2, data.train.batch_size or 2)
    images, labels = example(recipe, data, batch=batch), torch.zeros(batch, dtype=torch.long)
    trial, objective = copy.deepcopy(backbone), task_objective(stage)
    with drawing(recipe.seed, "trial"):
        objective.begin(trial, lambda: images)
    what = f"{batch} image{'s' if batch > 1 else ''} of {' x '.join(map(str, images.shape[1:]))}"
    try:
        with drawing(recipe.seed, "trial"):
            answer = trial.eval()(images)
            if not isinstance(answer, Tensor) or answer.shape != (batch, data.classes):
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise ValueError(f"it answers with {shape}, where ({batch}, {data.classes}) are the classes")
            torch.autograd.backward(objective(trial.train(), images, labels))
    except Exception as error:
        raise RecipeError(
            f"{recipe.model.name} cannot be trained on {what}: {first_line(error) or type(error).__name__}; "
            "check data.image_size, data.batch_size and model.kwargs"
        ) from error


def budget(recipe: Recipe, axes: Axes, predictor: Predictor) -> Budget:
    """The recipe's limit on its cost."""
    return Budget(recipe.budget.target, _cost(recipe.budget.cost, axes, predictor))


def limits(recipe: Recipe, axes: Axes, predictor: Predictor) -> list[Budget]:
    """The recipe's further limits."""
    return [Budget(target, _cost(name, axes, predictor)) for name, target in recipe.budget.limits.items()]


def _cost(name: str, axes: Axes, predictor: Predictor) -> CostModel:
    model: CostModel = predictor if name == "latency" else costs[name](axes)
    return model


def selector(search: SearchSettings) -> Selector:
    """The recipe's selector, or the one that fits where the scores come from."""
    return bound("search.selector", selectors, search.fitting_selector, 1)


def example(recipe: Recipe, data: Data, *, batch: int, device: torch.device | None = None) -> Tensor:
    """Images of the right shape for tracing and timing, the same ones every time."""
    size = recipe.data.image_size
    return random_images(batch, data.channels, size, size, seed=recipe.seed).to(device or "cpu")
