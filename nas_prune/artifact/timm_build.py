"""Build an artefact the way timm builds its own models, so that every argument of ``timm.create_model`` works.

timm builds the backbone and loads the weights: another classifier, other input channels, features only, and whatever a
family does on top. In between, where timm shrinks its own pruned models (``pruned=True``), the backbone is made the
derived model. timm offers no official place for that: one private name of its builder stands in while a model is built.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from threading import RLock, current_thread
from typing import Any

import timm
from timm.models import PretrainedCfg, _builder, model_entrypoint
from torch import nn

from nas_prune.artifact import tensors as artifact_tensors
from nas_prune.artifact.adapt import adapt, true_channels
from nas_prune.artifact.config import BUFFERS, WEIGHTS, Config
from nas_prune.artifact.folder import checked
from nas_prune.base.errors import ArtifactError
from nas_prune.base.plain import tuples

PLACE = "adapt_model_from_file"  # (model, name of the backbone) -> model
Shrink = Callable[[nn.Module, str], nn.Module]
_LOCK = RLock()


def build(pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    """The model of the artefact that ``pretrained_cfg`` names, with the other arguments of ``timm.create_model``.

    Raises ArtifactError, before anything is allocated, if the artefact is incomplete, damaged or tampered with.
    """
    source = _source(arguments.pop("pretrained_cfg", None), arguments.pop("pretrained_cfg_overlay", None))
    if not source.get("file"):
        raise ArtifactError(
            "nas_prune_derived is the model of an artefact, and no folder is named; use local-dir:FOLDER with timm, "
            "or nas_prune.load(FOLDER). An artefact on a hub must be downloaded first"
        )
    folder = Path(source["file"])
    config = checked(folder)
    source |= {"architecture": config.backbone, "source": "local-dir"}
    if not _is_pruned_by_timm(config.backbone):
        arguments["pruned"] = True
    with _shrinking(_shrink(folder, config, typed=pretrained and "dtype" not in arguments)) as shrunk:
        model = model_entrypoint(config.backbone)(pretrained=pretrained, pretrained_cfg=source, **arguments)
    if len(shrunk) != 1:
        raise _unknown_timm()
    assert isinstance(model, nn.Module)
    _tell_size(model, config)
    return model


def _tell_size(model: Any, config: Config) -> None:
    """timm prepares images by ``pretrained_cfg``; a backbone of any size was trained at that of its recipe."""
    recipe = (config.provenance or {}).get("recipe")
    side = recipe.get("data.image_size") if isinstance(recipe, Mapping) else None
    if type(side) is int and not model.pretrained_cfg.get("fixed_input_size"):
        channels, *_ = model.pretrained_cfg["input_size"]
        model.pretrained_cfg["input_size"] = (channels, side, side)


def _source(config: object, overlay: dict[str, Any] | None) -> dict[str, Any]:
    """timm's pretrained_cfg as a mapping, without what is not set."""
    known = config.to_dict() if isinstance(config, PretrainedCfg) else config
    both = {**(known if isinstance(known, dict) else {}), **(overlay or {})}
    return {name: tuples(value) for name, value in both.items() if value is not None}


def _shrink(folder: Path, config: Config, *, typed: bool) -> Callable[[nn.Module], None]:
    """What makes a backbone the derived model; ``typed``: with the precision of the stored weights."""
    origin = config.origin.build("meta")
    buffers = artifact_tensors.read(folder / BUFFERS)
    stored = artifact_tensors.header(folder / WEIGHTS) if typed else {}
    dtypes = {name: value.dtype for name, value in stored.items()}

    def shrink(model: nn.Module) -> None:
        adapt(model, origin, config.difference, buffers, dtypes)
        true_channels(model)

    return shrink


def _is_pruned_by_timm(backbone: str) -> bool:
    """Whether timm itself shrinks this backbone when it builds it; ours is the second step then."""
    return (files("timm.models") / "_pruned" / f"{backbone}.txt").is_file()


@contextmanager
def _shrinking(shrink: Callable[[nn.Module], None]) -> Iterator[list[str]]:
    """Inside the block, and in this thread, timm's builder shrinks models this way; yields the names of those."""
    shrunk: list[str] = []
    owner = current_thread()
    with _LOCK:
        former: Shrink | None = getattr(_builder, PLACE, None)
        if former is None:
            raise _unknown_timm()

        def stand_in(model: nn.Module, backbone: str) -> nn.Module:
            if current_thread() is not owner:
                return former(model, backbone)
            model = former(model, backbone) if _is_pruned_by_timm(backbone) else model
            shrink(model)
            shrunk.append(backbone)
            return model

        setattr(_builder, PLACE, stand_in)
        try:
            yield shrunk
        finally:
            setattr(_builder, PLACE, former)


def _unknown_timm() -> ArtifactError:
    return ArtifactError(
        f"timm {timm.__version__} builds models in a way that this nas_prune does not know; use nas_prune.load(FOLDER)"
    )
