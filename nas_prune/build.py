"""Build: the one place where the names in a recipe become objects."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs, set_seed
from timm.optim import list_optimizers
from torch import Tensor, nn

from nas_prune import tensor_file
from nas_prune.costs import Budget, CostModel, Predictor, costs
from nas_prune.costs.budget import parse_target
from nas_prune.costs.runtimes import missing
from nas_prune.criteria import criteria
from nas_prune.data import Data
from nas_prune.descent import Pace
from nas_prune.errors import ArtifactError, RecipeError, RuntimeMissingError, UnknownNameError, first_line, shown
from nas_prune.gated import GatedModel
from nas_prune.gates import gates
from nas_prune.order import drawing
from nas_prune.origin import SOURCES
from nas_prune.penalties import penalties
from nas_prune.preprocessing import data_keys, tell
from nas_prune.recipe import Recipe
from nas_prune.registry import MODELS, hint
from nas_prune.selectors import selectors
from nas_prune.settings import ModelSettings
from nas_prune.space import SearchSpace
from nas_prune.tracing import Axes

PATIENCE = timedelta(days=1)  # while one process measures, the others wait


def check(recipe: Recipe) -> None:
    """Every name and every option of a recipe, before the first second is spent on it."""
    for target in (recipe.budget.target, *recipe.budget.limits.values()):
        parse_target(target)
    _refuse_sources(recipe.model.kwargs)
    _bind("gate.options", gates[recipe.gate.name], (1, [1]), recipe.gate.options)
    for kind, own in recipe.gate.kinds.items():
        _bind(f"gate.kinds.{kind}.options", gates[own.name], (1, [1]), own.options)
    for penalty in recipe.search.penalties:
        _bind("search.penalties", penalties[penalty.name], (None,), penalty.options)
    known = dict.fromkeys(list_optimizers())
    for section, name in {"dense": recipe.dense, "search": recipe.search, "finetune": recipe.finetune}.items():
        if name.optimizer.lower() not in known:
            raise RecipeError(f"{section}.optimizer: timm has no {shown(name.optimizer)}{hint(name.optimizer, known)}")
    if recipe.search.criterion is not None and recipe.search.criterion not in criteria:
        raise RecipeError(
            f"search.criterion: no {shown(recipe.search.criterion)}{hint(recipe.search.criterion, criteria)}"
        )
    selector = recipe.search.fitting_selector
    if selector not in selectors:
        raise RecipeError(f"search.selector: no {shown(selector)}{hint(selector, selectors)}")


def _refuse_sources(arguments: dict[str, Any]) -> None:
    """A recipe may come from anyone, and timm's own checkpoints may be pickles: weights have keys of their own."""
    for name, value in arguments.items():
        reaches = isinstance(value, dict) and SOURCES & value.keys()
        if name in ("pretrained", "checkpoint_path", "cache_dir") or (name.startswith("pretrained") and reaches):
            raise RecipeError(
                f"model.kwargs.{name} names weights; use model.pretrained, or model.checkpoint for safetensors"
            )


def _bind(key: str, part: Callable[..., object], given: tuple[object, ...], options: dict[str, Any]) -> None:
    try:
        inspect.signature(part).bind(*given, **options)
    except TypeError as error:
        raise RecipeError(f"{key} do not fit: {first_line(error)}; `nas-prune list` shows what there is") from error


def accelerator(recipe: Recipe) -> Accelerator:
    """Device, precision and processes; seeds every generator. Raises RecipeError for what this machine cannot do."""
    set_seed(recipe.seed)
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
    """Arguments of timm.create_model: the recipe's, and what the data decides."""
    return {"num_classes": data.classes, "in_chans": data.channels, **settings.kwargs}


def model(settings: ModelSettings, data: Data) -> nn.Module:
    """The timm backbone. Raises UnknownNameError or RecipeError, saying what timm said."""
    if not timm.is_model(settings.name):
        raise UnknownNameError(
            f"timm has no model {shown(settings.name)}{hint(settings.name, timm.list_models(), MODELS)}"
        )
    try:
        created = timm.create_model(settings.name, pretrained=settings.pretrained, **model_kwargs(settings, data))
    except Exception as error:
        what = "its published weights could not be fetched" if settings.pretrained else "check model.kwargs"
        raise RecipeError(f"timm cannot create {settings.name} ({what}): {first_line(error)}") from error
    if settings.checkpoint is not None:
        _load_weights(created, Path(settings.checkpoint))
    assert isinstance(created, nn.Module)
    tell(created, data.seen)
    return created


def resolved(recipe: Recipe) -> Recipe:
    """The recipe; what it does not say about images is as it was for the weights that it starts from, if for any."""
    if not recipe.model.pretrained and recipe.model.checkpoint is None:
        return recipe
    config = timm.get_pretrained_cfg(recipe.model.name) if timm.is_model(recipe.model.name) else None
    known = data_keys(config.to_dict()) if config else {}
    new = {key: value for key, value in known.items() if key not in recipe.data.model_fields_set}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=new)}) if new else recipe


def _load_weights(created: nn.Module, path: Path) -> None:
    try:
        created.load_state_dict(tensor_file.read(path, ArtifactError))
    except RuntimeError as error:
        raise ArtifactError(
            f"model.checkpoint {path} does not hold this model's weights: {first_line(error)}"
        ) from error


def gated(recipe: Recipe, backbone: nn.Module, space: SearchSpace) -> GatedModel:
    """The backbone with the recipe's gates."""
    kinds = {kind: (own.name, own.options) for kind, own in recipe.gate.kinds.items()}
    with drawing(recipe.seed, "gates"):  # the same ones, whether the backbone was trained just now or long ago
        return GatedModel(backbone, space, recipe.gate.name, options=recipe.gate.options, kinds=kinds)


def budget(recipe: Recipe, axes: Axes, predictor: Predictor) -> Budget:
    """The recipe's limit on its cost."""
    return Budget(recipe.budget.target, _cost(recipe.budget.cost, axes, predictor))


def limits(recipe: Recipe, axes: Axes, predictor: Predictor) -> list[Budget]:
    """The recipe's further limits."""
    return [Budget(target, _cost(name, axes, predictor)) for name, target in recipe.budget.limits.items()]


def _cost(name: str, axes: Axes, predictor: Predictor) -> CostModel:
    model: CostModel = predictor if name == "latency" else costs[name](axes)
    return model


def penalty_terms(recipe: Recipe, limit: Budget) -> list[nn.Module]:
    """The recipe's terms beside the task loss."""
    return [penalties[each.name](limit, **each.options) for each in recipe.search.penalties]


def example(recipe: Recipe, data: Data, *, batch: int, device: torch.device | None = None) -> Tensor:
    """Images of the right shape for tracing and timing, the same ones every time."""
    generator = torch.Generator().manual_seed(recipe.seed)
    size = recipe.data.image_size
    return torch.randn(batch, data.channels, size, size, generator=generator).to(device or "cpu")
