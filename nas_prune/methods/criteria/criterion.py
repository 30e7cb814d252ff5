"""What a criterion is: a model with gates, and some labelled batches -> one score per unit, higher = keep.

Most look at the network with all units open. Where a space has choices, all candidates of each are in it, and add up:
a network that nobody derives, but the only one in which all of them can be scored at once.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas_prune.base.errors import DataError
from nas_prune.base.registry import Registry
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches, Scores
from nas_prune.tracing.terms import Term, leaves


class Criterion(Protocol):
    """Called with a gated model and batches of images (b c h w) and labels (b), where the model is."""

    def __call__(self, gated: GatedModel, batches: Batches) -> Scores:
        """Scores (c) per free axis. The model is left as it was: weights, buffers, gradients, modes, gates."""
        ...


criteria: Registry[Criterion] = Registry("criterion", __package__)
BEFORE_TRAINING = frozenset({"snip", "grasp", "synflow"})  # made for weights that have not learnt anything yet


def norms(gated: GatedModel, name: str, keep: Mapping[str, Tensor] | None = None) -> Tensor:
    """Squared norm (c) of the weights that write each unit of an axis, of what is kept of all that they read."""
    return torch.stack([rows.detach().square().sum(1) for rows in gated.weights(name, keep)]).sum(0)


def per_image(
    model: Callable[[Tensor], Any], batches: Sequence[tuple[Tensor, Tensor]], total: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """The mean over all images of what ``total`` says of a batch's logits (b k) and labels (b), as a sum over them."""
    sums = torch.stack([total(model(images), labels) for images, labels in batches])
    return float(sums.sum()) / sum(len(labels) for _, labels in batches)


def with_the_rest(gated: GatedModel, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores (c) per free axis: those that were found, and of other axes that of the best unit, so that they stay."""
    best = max((float(score.max()) for score in found.values()), default=1.0)
    like = next(iter(found.values()), next(gated.backbone.parameters())).detach()
    free = gated.space.free.items()
    return {name: found[name] if name in found else like.new_full((axis.size,), best) for name, axis in free}


def at_least_one(batches: Batches, what: str) -> list[tuple[Tensor, Tensor]]:
    """All of the batches. Raises DataError where there is none."""
    found = list(batches)
    if not found:
        raise no_batch(what)
    return found


def no_batch(what: str) -> DataError:
    """The error of a criterion that has no image to look at."""
    return DataError(f"{what} needs at least one batch of images and labels; there was none")


def one_by_one(batches: Batches, images: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The first ``images`` of the batches, one at a time (1 c h w) with its label (1). DataError without any."""
    left = images
    for x, labels in batches:
        yield from zip(torch.split(x[:left], 1), torch.split(labels[:left], 1), strict=True)
        left -= min(left, len(labels))
        if left == 0:
            return
    if left == images:
        raise no_batch(what)


def means_of_units(gated: GatedModel, values: Sequence[tuple[Term, Tensor]]) -> dict[str, Tensor]:
    """Scores (c) of the free axes that a term speaks of: the mean of all numbers that belong to each unit.

    Each tensor (n) has a number per entry of its term.
    """
    found: dict[str, Tensor] = {}
    for name in gated.space.free:
        own = [each for each in values if name in {gated.axes.variables.get(var) for var in leaves(each[0])}]
        if own:
            found[name] = _mean_of_units(gated, name, own)
    return found


def _mean_of_units(gated: GatedModel, name: str, values: Sequence[tuple[Term, Tensor]]) -> Tensor:
    """The mean (c) of all numbers that belong to each unit of one axis."""
    unit = values[0][1].new_ones(gated.axes[name].size).requires_grad_()
    with torch.enable_grad():  # a mask is linear in each unit: its slope says which entries are the unit's
        masks = [gated.axes.mask(term, {name: unit}) for term, _ in values]
        sums = torch.autograd.grad(masks, unit, [each for _, each in values], retain_graph=True)[0]
        counts = torch.autograd.grad(masks, unit, [torch.ones_like(each) for _, each in values])[0]
    return sums / counts


@torch.no_grad()
def float64_copy(gated: GatedModel) -> GatedModel:
    """A copy that computes in float64 and eval mode; its parameters are leaves that can be learnt."""
    copied = copy.deepcopy(gated).eval()
    made = {id(parameter): nn.Parameter(parameter.double()) for parameter in copied.parameters()}
    for module in copied.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, made[id(parameter)])
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, buffer.double() if buffer.is_floating_point() else buffer)
    return copied
