"""Ablation: what the loss really rises by when something is taken out of the dense network, everything else in place.

A branch is closed; a candidate takes the place of the first one; a width loses its units, step by step, and each unit
scores its share of the step at which it goes. All are differences of one loss, so branches, operations and widths can
be weighed against each other, and the selector "optimal" adds them up. Ours.

Which units of a width go first is not what is measured but what is given, by ``order``: those that the loss moves with
least to first order (``taylor``, one backward pass per batch for all widths together), those without which, each alone,
it rises least (``alone``, a forward pass per unit: the oracle of Molchanov et al., arXiv 1611.06440, section 2, against
which criteria are judged), or those of least norm (``norm``, which knows nothing of the loss: of units of like norm it
cannot tell those that work from those that are idle).

Losses of a width are replaced by the nearest ones that rise faster and faster (isotonic regression of the steps), so
that the units that go last are those of highest score, and a step that seems to help counts nothing.

Cost: a forward pass over the batches per branch, candidate and step of a width; per unit with order alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Literal

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.axis import BITS
from nas_prune.base.errors import DivergedError
from nas_prune.methods.criteria.criterion import at_least_one, criteria, norms, per_image
from nas_prune.methods.criteria.of_loss.taylor import slopes_of
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.capture import evaluating

TIE = 1e-9  # units of one step keep the order in which they go

Order = Literal["taylor", "alone", "norm"]
Kept = Mapping[str, Sequence[int]]


@criteria.register("ablation")
def ablation(gated: GatedModel, batches: Batches, *, steps: int = 8, order: Order = "taylor") -> dict[str, Tensor]:
    """Scores (c) per free axis, in units of the mean cross-entropy, none of them negative.

    ``steps``: at most so many forward passes over the batches per width; a branch and a candidate are one each.
    ``order``: which units of a width go first; see above.
    Raises DataError without a batch, DivergedError where the loss is not a number.
    """
    fixed = at_least_one(batches, "ablation")

    def loss(kept: Kept) -> float:
        mean = per_image(gated.fixed(Arch(kept)), fixed, partial(F.cross_entropy, reduction="sum"))
        if not isfinite(mean):
            raise DivergedError("the loss is not a number; check the images, the labels and the weights of the model")
        return mean

    scores: dict[str, Tensor] = {}
    slopes = slopes_of(gated, fixed) if order == "taylor" else {}
    with evaluating(gated), torch.no_grad():
        dense = loss({})

        def rise(kept: Kept) -> float:
            return loss(kept) - dense

        for name, axis in gated.space.alone.items():
            if axis.kind in BITS:
                scores[name] = torch.tensor([max(0.0, rise({name: []}))], dtype=torch.float64)
            else:
                worth = slopes[name] if order == "taylor" else norms(gated, name)
                if order == "alone":
                    worth = _alone(name, axis.size, rise)
                scores[name] = _of_width(gated, name, rise, steps, worth.argsort(stable=True).cpu())
        for names in gated.space.choices.values():
            others = (rise({each: range(int(each == chosen)) for each in names}) for chosen in names[1:])
            risen = torch.tensor([0.0, *others], dtype=torch.float64)  # the dense network has the first one
            scores |= dict(zip(names, torch.split(risen.max() - risen, 1), strict=True))
    return scores


def _alone(name: str, size: int, rise: Callable[[Kept], float]) -> Tensor:
    """What the loss rises by without each unit (c) of an axis, all others in place."""
    if size == 1:  # an axis never loses its last unit
        return torch.zeros(1)
    risen = [rise({name: [unit for unit in range(size) if unit != gone]}) for gone in range(size)]
    return torch.tensor(risen, dtype=torch.float64)


def _of_width(gated: GatedModel, name: str, rise: Callable[[Kept], float], steps: int, order: Tensor) -> Tensor:
    """Scores (c) of an axis whose units go in this order (c)."""
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
