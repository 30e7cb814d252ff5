"""What a criterion is: a model with gates, and some labelled batches -> one score per unit, higher = keep."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_prune.base.registry import Registry
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches, Scores


class Criterion(Protocol):
    """Called with a gated model and batches of images (b c h w) and labels (b), where the model is."""

    def __call__(self, gated: GatedModel, batches: Batches) -> Scores:
        """Scores (c) per free axis. The model is left as it was: weights, buffers, gradients, modes, gates."""
        ...


criteria: Registry[Criterion] = Registry("criterion", __package__)


def norms(gated: GatedModel, name: str, keep: Mapping[str, Tensor] | None = None) -> Tensor:
    """Squared norm (c) of the weights that write each unit of an axis, of what is kept of all that they read."""
    return torch.stack([rows.detach().square().sum(1) for rows in gated.weights(name, keep)]).sum(0)


def per_image(
    model: Callable[[Tensor], Any], batches: Sequence[tuple[Tensor, Tensor]], total: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """The mean over all images of what ``total`` says of a batch's logits (b k) and labels (b), as a sum over them."""
    sums = torch.stack([total(model(images), labels) for images, labels in batches])
    return float(sums.sum()) / sum(len(labels) for _, labels in batches)
