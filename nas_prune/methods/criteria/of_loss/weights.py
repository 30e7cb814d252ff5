"""What criteria of single weights share: gradients of the loss, and sums over the weights that write a unit.

Papers that score weights one by one become criteria of units as in COPS (arXiv 2107.12673) with groups for weights,
which is ours: a unit scores the sum over all weights that write it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import DivergedError, SpaceError
from nas_prune.methods.criteria.criterion import with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.roles.writers import striped

Weights = Mapping[str, Tensor]


def weights_of(gated: GatedModel) -> dict[str, Tensor]:
    """The parameters that write free axes, by name; one that the model computes of others is none.

    Raises SpaceError where there is none.
    """
    names = dict.fromkeys(tensor for written in gated.writers.values() for tensor, _, _ in written)
    names |= dict.fromkeys(striped(name) for name, axis in gated.space.free.items() if axis.kind == "stripe")
    found = {name: tensor_of(gated.backbone, name) for name in names}
    weights: dict[str, Tensor] = {name: each for name, each in found.items() if isinstance(each, nn.Parameter)}
    if not weights:
        raise SpaceError(
            "this criterion scores weights one by one, and no parameter writes an axis of this search space; choose "
            "one that scores gates, such as taylor"
        )
    return weights


def sums_of_units(gated: GatedModel, values: Weights) -> dict[str, Tensor]:
    """Scores (c) per free axis: the sum of the values of all weights that write a unit, values being as the weights.

    What no weight writes scores as the best unit does, and so stays.
    """
    found: dict[str, Tensor] = {}
    for name, axis in gated.space.free.items():
        written = [tensor for tensor, _, _ in gated.writers[name]] if axis.kind != "stripe" else [striped(name)]
        if written and all(tensor in values for tensor in written):
            found[name] = torch.cat([each for _, each in gated.rows(name, lambda tensor, _: values[tensor])], 1).sum(1)
    return with_the_rest(gated, found)


@contextmanager
def learning(weights: Weights) -> Iterator[None]:
    """In the block gradients reach the weights, also those that are not learnt."""
    still = [each for each in weights.values() if not each.requires_grad]
    try:
        for each in still:
            each.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for each in still:
            each.requires_grad_(False)


def slopes(scalar: Tensor, weights: Weights, *, again: bool = False) -> dict[str, Tensor]:
    """The gradient of a number with respect to each weight; ``again``: it can be differentiated once more.

    Raises DivergedError where the number, or a gradient, is not a number.
    """
    slope = torch.autograd.grad(scalar, list(weights.values()), create_graph=again, materialize_grads=True)
    found = dict(zip(weights, slope, strict=True))
    check(scalar, found)
    return found


def check(loss: Tensor, found: Weights) -> None:
    """Raises DivergedError where the loss, or what was found of it, is not a number."""
    lost = next((name for name, each in found.items() if not bool(each.isfinite().all())), None)
    if lost is not None or not bool(loss.isfinite().all()):
        raise DivergedError(
            f"the loss or its gradient is not a number{f' at {lost}' if lost else ''}; "
            "check the images, the labels and the weights that scores are computed from"
        )


def along(first: Weights, direction: Weights) -> Tensor:
    """The inner product of a gradient with a direction, whose gradient is the Hessian times the direction."""
    return torch.stack([(each * direction[name].detach()).sum() for name, each in first.items()]).sum()


def share_of_loss(gated: GatedModel, batch: tuple[Tensor, Tensor], images: int, temperature: float = 1.0) -> Tensor:
    """What a batch adds to the mean cross-entropy over so many images, all units open; logits over ``temperature``."""
    return F.cross_entropy(gated.opened()(batch[0]) / temperature, batch[1], reduction="sum") / images


def added(found: Weights | None, more: Weights) -> dict[str, Tensor]:
    """The sum, weight by weight."""
    return {name: found[name] + each.detach() if found else each.detach() for name, each in more.items()}
