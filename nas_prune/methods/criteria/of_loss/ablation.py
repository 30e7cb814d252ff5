"""Ablation: what the loss really rises by when something is taken out of the dense network, everything else in place.

A branch is closed; a candidate takes the place of the first one; a width loses its units of least norm, step by step,
and each unit scores its share of the step at which it goes. All are differences of one loss, so branches, operations
and widths can be weighed against each other, and the selector "optimal" adds them up. Ours; a single step is the
oracle of Molchanov et al. (arXiv 1611.06440, section 2), against which criteria are judged.

Losses of a width are replaced by the nearest ones that rise faster and faster (isotonic regression of the steps), so
that the units of most norm are those of highest score, and a step that seems to help counts nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.axis import BITS
from nas_prune.base.errors import DivergedError
from nas_prune.methods.criteria.criterion import at_least_one, criteria, norms, per_image
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.capture import evaluating

TIE = 1e-9  # units of one step keep the order of their norms

Kept = Mapping[str, Sequence[int]]


@criteria.register("ablation")
def ablation(gated: GatedModel, batches: Batches, *, steps: int = 8) -> dict[str, Tensor]:
    """Scores (c) per free axis, in units of the mean cross-entropy, none of them negative.

    ``steps``: at most so many forward passes over the batches per width; a branch and a candidate are one each.
    Raises DataError without a batch, DivergedError where the loss is not a number.
    """
    fixed = at_least_one(batches, "ablation")

    def loss(kept: Kept) -> float:
        mean = per_image(gated.fixed(Arch(kept)), fixed, partial(F.cross_entropy, reduction="sum"))
        if not isfinite(mean):
            raise DivergedError("the loss is not a number; check the images, the labels and the weights of the model")
        return mean

    scores: dict[str, Tensor] = {}
    with evaluating(gated), torch.no_grad():
        dense = loss({})

        def rise(kept: Kept) -> float:
            return loss(kept) - dense

        for name, axis in gated.space.alone.items():
            if axis.kind in BITS:
                scores[name] = torch.tensor([max(0.0, rise({name: []}))], dtype=torch.float64)
            else:
                scores[name] = _of_width(gated, name, rise, steps)
        for names in gated.space.choices.values():
            others = (rise({each: range(int(each == chosen)) for each in names}) for chosen in names[1:])
            risen = torch.tensor([0.0, *others], dtype=torch.float64)  # the dense network has the first one
            scores |= dict(zip(names, torch.split(risen.max() - risen, 1), strict=True))
    return scores


def _of_width(gated: GatedModel, name: str, rise: Callable[[Kept], float], steps: int) -> Tensor:
    """Scores (c) of an axis of which the units of least norm go first."""
    order = norms(gated, name).argsort(stable=True).cpu()
    least = max(1, gated.space.minimum[name])
    groups = [group for group in order[: len(order) - least].tensor_split(steps) if len(group)]
    if not groups:
        return torch.zeros(len(order), dtype=torch.float64)
    sizes = torch.tensor([len(group) for group in groups])
    risen = [0.0, *(rise({name: order[gone:].tolist()}) for gone in sizes.cumsum(0).tolist())]
    shares = (torch.tensor(risen, dtype=torch.float64).diff() / sizes).repeat_interleave(sizes)
    rising = torch.from_numpy(isotonic_regression(shares.numpy()).x).clamp(min=0)
    ties = torch.linspace(1, 1 + TIE, len(order), dtype=torch.float64)
    rising = torch.cat([rising, rising[-1:].expand(least)]) * ties
    return torch.zeros_like(rising).scatter(0, order, rising)
