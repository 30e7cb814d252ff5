"""Scores: how much each unit of each axis matters, and the images that they were found on."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from nas_prune.base.errors import DivergedError

Scores = Mapping[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def finite(scores: Scores) -> dict[str, Tensor]:
    """The scores in float64 on the CPU. Raises DivergedError where one is not a finite number."""
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise DivergedError(f"scores of axis {name} are not finite numbers; lower the learning rate of the gates")
    return {name: score.detach().double().cpu() for name, score in scores.items()}
