"""What a criterion is: a model with gates, and some labelled batches -> one score per unit, higher = keep."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from nas_prune.gated import GatedModel
from nas_prune.registry import Registry
from nas_prune.selectors import Scores

Batches = Iterable[tuple[Tensor, Tensor]]


class Criterion(Protocol):
    """Called with a gated model and batches of images (b c h w) and labels (b), where the model is."""

    def __call__(self, gated: GatedModel, batches: Batches) -> Scores:
        """Scores (c) per free axis. The model is left as it was: weights, buffers, gradients, modes, gates."""
        ...


criteria: Registry[Criterion] = Registry("criterion")
