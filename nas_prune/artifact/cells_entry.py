"""The entry by which timm knows networks of cells: ``timm.create_model("nas_prune_cells", space="darts")``.

Neither timm nor torch is imported before a model is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["default_cfgs", "nas_prune_cells"]

default_cfgs = {  # where timm's ``register_model`` looks; the papers' spaces are made for CIFAR-10
    "nas_prune_cells": {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "stem.0",
        "classifier": "head.fc",
    }
}


def nas_prune_cells(pretrained: bool = False, drop_path_rate: float = 0.0, **kwargs: Any) -> "nn.Module":
    """A supernet or, with ``genotype``, the network of one; the other arguments are those of CellNetwork.

    ``drop_path_rate``: what ``CellNetwork.set_drop_path`` takes. Raises SpaceError and ArchError where these do not
    fit.
    """
    from timm.models import build_model_with_cfg
    from torch import nn

    from nas_prune.ops.cells.network import CellNetwork

    def made(**arguments: Any) -> CellNetwork:
        network = CellNetwork(**arguments)
        network.set_drop_path(drop_path_rate)
        return network

    stages = {"out_indices": (0, 1, 2), "feature_cls": "getter"}
    model = build_model_with_cfg(made, "nas_prune_cells", pretrained, feature_cfg=stages, **kwargs)
    assert isinstance(model, nn.Module)
    return model


def register() -> None:
    """Let ``timm.create_model("nas_prune_cells", ...)`` make such a network."""
    from timm.models import is_model, register_model

    if not is_model(nas_prune_cells.__name__):
        register_model(nas_prune_cells)
