"""How images come before a model, in timm's words: the ``pretrained_cfg`` that a trained model carries with it.

Whoever loads it, timm's own scripts included, reads there how to prepare images: size, mean, spread, interpolation,
crop, and what the classes are called. So it must tell of the data that the model was trained on, not of its backbone's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nas_prune.train.data.settings import DataSettings

OF_OTHER_IMAGES = {
    "test_input_size",
    "test_crop_pct",
    "label_offset",
    "label_names",
    "label_descriptions",
    "num_classes",
}
OF_OTHER_WEIGHTS = {
    "tag",
    "description",
    "notes",
    "custom_load",
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
}


def in_timms_words(
    settings: DataSettings,
    normalised: tuple[Sequence[float], Sequence[float]],
    names: Sequence[str] | None,
    classes: int,
) -> dict[str, Any]:
    """The entries of a ``pretrained_cfg`` that tell how these images come.

    ``normalised``: mean and spread by channel; ``names``: what the classes are called, if they are.
    """
    mean, std = map(tuple, normalised)
    size = (len(mean), settings.image_size, settings.image_size)
    cut = {"interpolation": settings.interpolation, "crop_pct": settings.crop_pct, "crop_mode": "center"}
    named = {"label_names": tuple(names)} if names else {}
    return {"input_size": size, "mean": mean, "std": std, "num_classes": classes, **cut, **named}


def tell(model: nn.Module, seen: Mapping[str, Any]) -> None:
    """Let a model say that it is trained on images which come like this; what it said of others goes."""
    former = getattr(model, "pretrained_cfg", None)
    if not isinstance(former, Mapping) or not seen:
        return
    kept = {key: value for key, value in former.items() if key not in OF_OTHER_IMAGES | OF_OTHER_WEIGHTS}
    size, pool = former.get("input_size"), former.get("pool_size")
    if size and pool:
        kept["pool_size"] = tuple(max(1, round(p * seen["input_size"][1] / size[1])) for p in pool)
    model.pretrained_cfg = model.default_cfg = {**kept, **seen}  # type: ignore[assignment]


def data_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe's ``data`` section that follow from a ``pretrained_cfg``."""
    size, found = config.get("input_size"), {key: config[key] for key in ("crop_pct",) if config.get(key)}
    found |= {key: tuple(config[key]) for key in ("mean", "std") if len(config.get(key) or ()) == 3}
    if config.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = config["interpolation"]
    return found | ({"image_size": size[-1]} if size else {})
