"""Keep what a timm model says about itself true: channels of each stage, widths before and after the head's own layers.

Nothing is computed from rules: the derived model runs once, and what comes out of each stage is written down.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import RecipeError
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.axes import Axes
from nas_prune.tracing.graph.brought import untouched
from nas_prune.tracing.graph.capture import call
from nas_prune.tracing.graph.hooks import outputs_of


def run_and_describe(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Run a model once; where it is a timm model, set ``feature_info``, ``num_features`` and ``head_hidden_size``."""
    info = getattr(model, "feature_info", None)
    stages = [stage for stage in info if isinstance(stage, dict)] if isinstance(info, list) else []
    before = [stage["num_chs"] for stage in stages]
    seen: dict[str, Tensor] = {}
    listed = {stage.get("module") for stage in stages}

    def remember(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[name] = output

    with outputs_of({n: module for n, module in model.named_modules() if n in listed}, remember), untouched(model):
        features = _run(model, inputs)
    with untouched(model):
        maps = _maps(model, inputs) if any(stage["module"] not in seen for stage in stages) else []
    for number, stage in enumerate(stages):
        if len(maps) == len(stages):
            stage["num_chs"] = maps[number].shape[1]
        elif stage["module"] in seen:
            stage["num_chs"] = channels(seen[stage["module"]])
    _restate(model, before, [stage["num_chs"] for stage in stages])
    classifier = _classifier_width(model)
    width = classifier if features is None else channels(features)
    if width is not None and hasattr(model, "num_features"):
        vars(model).update(num_features=width, head_hidden_size=classifier or width)


def _restate(model: nn.Module, before: list[int], after: list[int]) -> None:
    """Where the model keeps the widths of its stages, stage for stage (some are new already), set all."""
    for name, value in vars(model).items():
        listed = isinstance(value, tuple | list) and len(value) == len(before) > 1
        if listed and all(width in pair for width, *pair in zip(value, before, after, strict=True)):
            setattr(model, name, type(value)(after))


def _run(model: Any, inputs: tuple[Any, ...]) -> Tensor | None:
    """The model's output is not of interest, only that it comes; the features before the head, if it tells them."""
    with torch.no_grad():
        if hasattr(model, "forward_features") and hasattr(model, "forward_head") and hasattr(model, "num_features"):
            features = call(model.forward_features, inputs)
            if isinstance(features, Tensor):
                model.forward_head(features)
                return features
        call(model, inputs)
    return None


def _maps(model: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The feature map (b c h w) of each stage, where stages hand on more than one tensor; none if timm gives none."""
    if not hasattr(model, "forward_intermediates"):
        return []
    with torch.no_grad():
        return list(call(partial(model.forward_intermediates, intermediates_only=True), inputs))


def channels(features: Tensor) -> int:
    """Channels of a feature map (b c h w), (b h w c) or of tokens (b n c)."""
    channels_first = features.ndim == 4 and features.shape[2] == features.shape[3]
    return int(features.shape[1] if channels_first else features.shape[-1])


def classifier_of(model: Any) -> nn.Linear | nn.Conv2d | None:
    """The layer that says the classes, of whose inputs a model's classifier makes logits; None where it has none."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    layers = classifier.modules() if isinstance(classifier, nn.Module) else ()
    return next((each for each in layers if isinstance(each, nn.Linear | nn.Conv2d)), None)


def read_by_classifier(model: nn.Module, axes: Axes, arch: Arch) -> Tensor | None:
    """Indices of the units that an architecture leaves of those which the classifier of ``model`` reads; None where all
    stay. Raises RecipeError where no single layer says the classes."""
    layer = classifier_of(model)
    name = next((name for name, module in model.named_modules() if module is layer), None)
    if name is None:
        raise RecipeError("finetune.distill_features: the model has no layer that says the classes; leave it out")
    return axes.indices(axes.tensors[f"{name}.weight"][1], arch)


def _classifier_width(model: Any) -> int | None:
    """Inputs of the classifier, a linear layer or a 1x1 convolution."""
    classifier = classifier_of(model)
    return classifier.in_features if isinstance(classifier, nn.Linear) else getattr(classifier, "in_channels", None)
