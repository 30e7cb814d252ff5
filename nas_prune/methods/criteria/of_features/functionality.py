"""Functionality: a unit contributes as much as the loss depends on what it says.

Qin et al., "Functionality-Oriented Convolutional Filter Pruning" (arXiv 1810.07322): of filters that do the same job,
those of the least contribution go. Which do the same job is for the selector ``clusters`` to find; this is

    gamma_i = 1/N sum_n || dL(x_n) / dA_i(x_n) ||

with A_i the feature map of filter i and L the loss of an image. A norm, as the mean of a gradient is near zero on
images that a network has learnt.

Ours: A_i is what the first convolution or linear layer that writes an axis says, in eval mode with all units open, so
one number covers all that an axis runs through. What neither writes (branches, candidates) scores as the best unit, and
so stays. Slopes of the loss differ in scale from layer to layer: the selectors ``clusters`` and ``uniform`` compare
them within an axis only.

Cost: a forward and a backward pass per batch.
"""

from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.errors import DivergedError, SpaceError
from nas_prune.methods.criteria.criterion import at_least_one, criteria, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.pictures.filters import filters, hearing
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating


@criteria.register("functionality")
def functionality(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:
    """Scores (c) per free axis. Raises DataError without a batch, DivergedError where a slope is not a number,
    SpaceError where no convolution or linear layer writes an axis.
    """
    fixed = at_least_one(batches, "functionality")
    images = sum(len(labels) for _, labels in fixed)
    found: dict[str, Tensor] = {}
    if not filters(gated):
        raise SpaceError(
            "functionality looks at what convolutions and linear layers write, and none writes an axis of this search "
            "space; choose another criterion, such as taylor"
        )
    with evaluating(gated):
        for x, labels in fixed:
            for name, lengths in _lengths(gated, x, labels).items():
                found[name] = found.get(name, torch.zeros_like(lengths[0])) + lengths.sum(0) / images
    lost = next((name for name, score in found.items() if not bool(score.isfinite().all())), None)
    if lost is not None:
        raise DivergedError(f"the slope of the loss is not a number at {lost}; check images, labels and weights")
    return with_the_rest(gated, found)


def _lengths(gated: GatedModel, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Length (b c) of the slope of each image's loss in the map of each unit."""
    places, heard = filters(gated), dict[str, Tensor]()
    with torch.enable_grad(), ExitStack() as stack:
        for path in {each.path for each in places.values()}:

            def hear(output: Tensor, path: str = path) -> None:
                heard[path] = output

            stack.enter_context(hearing(gated.backbone, path, hear))
        loss = F.cross_entropy(gated.opened()(images.detach().requires_grad_()), labels, reduction="sum")
        slopes = torch.autograd.grad(loss, list(heard.values()), materialize_grads=True, allow_unused=True)
    of = dict(zip(heard, slopes, strict=True))
    return {name: each.of(of[each.path]).norm(dim=2) for name, each in places.items()}
