"""Ablation: what the loss really rises by when something is taken out of the dense network, everything else in place.

A branch is closed; a candidate takes the place of the first one; a width loses its units of least norm, step by step,
and each unit scores its share of the step at which it goes. All are differences of one loss, so branches, operations
and widths can be weighed against each other, and the selector "optimal" adds them up. Ours; a single step is the
oracle of Molchanov et al. (arXiv 1611.06440, section 2), against which criteria are judged.

Losses of a width are replaced by the nearest ones that rise faster and faster (isotonic regression of the steps), so
that the units of most norm are those of highest score, and a step that seems to help counts nothing.
"""

from math import isfinite

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor
from torch.nn import functional as F

from nas_prune.arch import Arch
from nas_prune.axes import BITS
from nas_prune.criteria.criterion import Batches, criteria
from nas_prune.errors import DataError, DivergedError
from nas_prune.gated import GatedModel
from nas_prune.tracing.capture import evaluating

TIE = 1e-9  # units of one step keep the order of their norms


@criteria.register("ablation")
def ablation(gated: GatedModel, batches: Batches, *, steps: int = 8) -> dict[str, Tensor]:
    """Scores (c) per free axis, in units of the mean cross-entropy, none of them negative.

    ``steps``: at most so many forward passes over the batches per width; a branch and a candidate are one each.
    Raises DataError without a batch, DivergedError where the loss is not a number.
    """
    loss = _Loss(gated, batches)
    scores: dict[str, Tensor] = {}
    with evaluating(gated), torch.no_grad():
        for name, axis in gated.space.alone.items():
            if axis.kind in BITS:
                scores[name] = torch.tensor([max(0.0, loss({name: []}))], dtype=torch.float64)
            else:
                scores[name] = _of_width(gated, name, loss, steps)
        for names in gated.space.choices.values():
            risen = [loss({each: range(int(each == chosen)) for each in names}) for chosen in names]
            scores |= {
                name: torch.tensor([max(risen) - each], dtype=torch.float64)
                for name, each in zip(names, risen, strict=True)
            }
    return scores


class _Loss:
    """What the loss of the dense network rises by where an architecture keeps less or something else."""

    def __init__(self, gated: GatedModel, batches: Batches) -> None:
        self.gated, self.batches, self.dense = gated, list(batches), 0.0
        if not self.batches:
            raise DataError("ablation needs at least one batch of images and labels; there was none")
        with evaluating(gated), torch.no_grad():
            self.dense = self({})

    def __call__(self, kept: dict[str, list[int] | range]) -> float:
        opened = self.gated.fixed(Arch(kept))
        total = torch.stack(
            [F.cross_entropy(opened(images), labels, reduction="sum") for images, labels in self.batches]
        )
        mean = float(total.sum()) / sum(len(labels) for _, labels in self.batches)
        if not isfinite(mean):
            raise DivergedError("the loss is not a number; check the images, the labels and the weights of the model")
        return mean - self.dense


def _of_width(gated: GatedModel, name: str, loss: _Loss, steps: int) -> Tensor:
    """Scores (c) of an axis of which the units of least norm go first."""
    norms = torch.stack([rows.detach().square().sum(1) for rows in gated.weights(name)]).sum(0)
    order = norms.argsort(stable=True).cpu()
    least = max(1, gated.space.minimum[name])
    groups = [group for group in order[: len(order) - least].tensor_split(steps) if len(group)]
    if not groups:
        return torch.zeros(len(order), dtype=torch.float64)
    sizes = torch.tensor([len(group) for group in groups])
    risen = [0.0, *(loss({name: order[gone:].tolist()}) for gone in sizes.cumsum(0).tolist())]
    shares = (torch.tensor(risen, dtype=torch.float64).diff() / sizes).repeat_interleave(sizes)
    rising = torch.from_numpy(isotonic_regression(shares.numpy()).x).clamp(min=0)
    rising = torch.cat([rising, rising[-1:].expand(least)]) * torch.linspace(
        1, 1 + TIE, len(order), dtype=torch.float64
    )
    return torch.zeros_like(rising).scatter(0, order, rising)
