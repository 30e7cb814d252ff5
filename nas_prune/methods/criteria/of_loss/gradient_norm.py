"""Gradient norm: a branch matters as much as it makes the gradient of the loss long, in a network drawn anew around it.

Li, Lu et al., "SGLP: A Similarity Guided Fast Layer Partition Pruning" (arXiv 2410.14720): layers are judged by
GradNorm, without training. As in the paper's code for CNNs, what is judged is put, with its weights and statistics,
into a network whose other weights are drawn anew, and scores the norm sqrt(sum |g|^2) of the gradient of the
cross-entropy with respect to all parameters of that network, whose BatchNorm sees the batch.

Ours: the code judges every subset of layers that could stay, and draws its network once for all of them, so that what
was judged before is still in it. Here branches are judged one by one, each in the same few networks (``draws``), and
the mean counts. What a module cannot draw anew stays (position embeddings). A unit of a width scores the norm of the
gradient of the weights that write it, in the network as it is; so branches and units do not compare with each other,
and the selector ``segments`` compares each with its like.

Cost: a forward and a backward pass per branch and network drawn.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.axis import BITS
from nas_prune.base.errors import DataError
from nas_prune.methods.criteria.criterion import at_least_one, criteria, with_the_rest
from nas_prune.methods.criteria.of_loss.weights import added, learning, share_of_loss, slopes, sums_of_units, weights_of
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating

Pairs = Sequence[tuple[Tensor, Tensor]]


@criteria.register("gradient_norm")
def gradient_norm(gated: GatedModel, batches: Batches, *, draws: PositiveInt = 3) -> dict[str, Tensor]:
    """Scores (c) per free axis: a norm of the gradient of the mean cross-entropy.

    ``draws``: networks that each branch is put into. Raises DataError without a batch, or with one of a single image of
    which a BatchNorm sees one value per channel, SpaceError where there is neither a branch nor a weight to judge,
    DivergedError where a gradient is not a number.
    """
    fixed, parts = at_least_one(batches, "the norm of the gradient"), _branches(gated)
    found = _among_others(gated.plain(), parts, fixed, draws)
    if parts.keys() != gated.space.free.keys():
        found |= _of_units(gated, fixed)
    return with_the_rest(gated, found)


def _branches(gated: GatedModel) -> dict[str, list[str]]:
    """Axis of each residual branch that may go -> the parameters and buffers that it alone needs."""
    tensors = gated.axes.walk.captured.tensors
    found = [each for each in gated.axes.branches if each.kind == "depth" and each.name in gated.space.free]
    return {each.name: [tensors[node.name] for node in each.inside if node.name in tensors] for each in found}


def _among_others(model: nn.Module, parts: Mapping[str, list[str]], fixed: Pairs, draws: int) -> dict[str, Tensor]:
    """Scores (1) of the branches: the mean norm over networks that have no other weights of the model."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    for module in model.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    totals: dict[str, list[Tensor]] = {name: [] for name in parts}
    for drawn in (_drawn(model, seed) for seed in range(draws) if parts):
        for name, tensors in parts.items():
            model.load_state_dict(drawn | {each: own[each] for each in tensors})
            totals[name].append(_norm(model, fixed))
    return {name: torch.stack(norms).mean().reshape(1) for name, norms in totals.items()}


def _drawn(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The state of the model with all weights drawn anew that its modules can draw, the same on every device."""
    anew = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        for module in anew.modules():
            if callable(draw := getattr(module, "reset_parameters", None)):
                draw()
    return dict(anew.state_dict())


def _norm(model: nn.Module, fixed: Pairs) -> Tensor:
    """Norm () of the gradient of the mean cross-entropy with respect to all parameters."""
    weights, images = dict(model.named_parameters()), sum(len(labels) for _, labels in fixed)
    total: dict[str, Tensor] | None = None
    with learning(weights):
        for x, labels in fixed:
            loss = F.cross_entropy(_said(model, x), labels, reduction="sum") / images
            total = added(total, slopes(loss, weights))
    return torch.stack([each.square().sum() for each in (total or {}).values()]).sum().sqrt()


def _said(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says, its BatchNorm looking at the batch. Raises DataError where there is nothing to look at."""
    try:
        said: Tensor = model(x)
    except ValueError as error:
        if len(x) > 1:
            raise
        raise DataError(
            f"gradient_norm: a BatchNorm has no statistics of a batch of one image ({error}); leave that batch out "
            f"(drop_last of a DataLoader), or take larger ones"
        ) from error
    return said


def _of_units(gated: GatedModel, fixed: Pairs) -> dict[str, Tensor]:
    """Scores (c) of the axes that weights write: the norm of their gradient in the network as it is."""
    weights, images = weights_of(gated), sum(len(labels) for _, labels in fixed)
    total: dict[str, Tensor] | None = None
    with evaluating(gated), learning(weights):
        for batch in fixed:
            total = added(total, slopes(share_of_loss(gated, batch, images), weights))
    squares = {name: each.square() for name, each in (total or {}).items()}
    known = sums_of_units(gated, squares)
    return {name: known[name].sqrt() for name, axis in gated.space.free.items() if axis.kind not in BITS}
