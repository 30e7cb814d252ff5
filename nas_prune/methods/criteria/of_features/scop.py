"""SCOP: a unit matters as much as the network wants its real features, and not those of knockoff images.

Tang et al., "SCOP: Scientific Control for Reliable Neural Network Pruning" (arXiv 2010.10732, and the authors' code).
All weights are frozen. Each step shows a batch of images and as many knockoffs of them, which say nothing about the
label; where a unit is written, before its BatchNorm, its scale k blends the two, and the knockoffs go on as they are:

    z_real <- k z_real + (1 - k) z_knockoff         k from 1/2, by Adam, cut off at 0 and 1 after each step

down the cross-entropy of the images alone. BatchNorm is in training mode, over images and knockoffs together. Then

    s_u = |gamma_u| (k_u - (1 - k_u)) = |gamma_u| (2 k_u - 1)

compares within a layer: the paper removes the same share of each, as the selector ``uniform`` does. It re-estimates the
statistics of BatchNorm before it fine-tunes: ``finetune.recalibrate_batches``.

Ours: knockoffs need no generator (see ``knockoffs``). There is one k per unit of an axis: where several layers write it
(a residual stage, with its stem and shortcuts, which the authors' code leaves alone), it blends what each of them
writes, and |gamma| is the mean over all norms on the axis; without a norm it is 1. A row that belongs to units of two
axes blends by the product of their k. Layers are convolutions and linear ones whose images lie along the first
dimension; what none of them writes (stripes, branches, candidates as such) scores as the best unit does, and so stays.
The model is in eval mode but for its BatchNorm. The batches that are given are shown ``epochs`` times: k moves by about
0.004 a step, so that it takes some 125 steps to either end. A unit that nobody reads has no gradient, and scores 0.

Cost: epochs times a forward and a backward pass of twice the images.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import DataError, DivergedError, SpaceError
from nas_prune.methods.criteria.criterion import at_least_one, criteria, with_the_rest
from nas_prune.methods.criteria.of_features.knockoffs import knockoffs
from nas_prune.methods.criteria.of_weights.slimming import scales_of_norms
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.methods.writing import along
from nas_prune.tracing.graph.brought import computed_tensors

EPOCHS, RATE, BETAS = 20, 4e-3, (0.5, 0.9)  # of the authors' code
CROWDED, STILL = 0.9, 0.05  # ours: share of scales at one end, distance from 1/2, at which there is a warning
Distance = Annotated[float, Field(gt=0, le=1)]


@criteria.register("scop")
def scop(
    gated: GatedModel,
    batches: Batches,
    *,
    epochs: PositiveInt = EPOCHS,
    distance: Distance = 1.0,
    seed: NonNegativeInt = 0,
) -> dict[str, Tensor]:
    """Scores (c) per free axis, from ``epochs`` forward and backward passes over the batches and their knockoffs.

    ``distance``: how little of an image its knockoff shares, see ``knockoffs``; ``seed``: of what these are made of.
    Raises DataError with fewer than two images, DivergedError where the loss is not a number, SpaceError where no
    convolution or linear layer writes an axis.
    """
    shown = at_least_one(batches, "SCOP")
    images, generator = torch.cat([x for x, _ in shown]), torch.Generator().manual_seed(seed)
    if len(images) < 2:
        raise DataError("SCOP needs at least two images, of which it makes others that look alike; there was one")
    frozen = copy.deepcopy(gated, computed_tensors(gated)).eval().requires_grad_(False)
    scales = _blending(frozen, gcd(*(len(x) for x, _ in shown)))
    optimizer = torch.optim.Adam(scales.values(), RATE, BETAS)
    for _ in range(epochs):
        for x, labels in shown:
            noise = torch.randn(len(x), len(images), generator=generator).to(x)
            optimizer.zero_grad()
            torch.autograd.backward(_loss(frozen, torch.cat([x, knockoffs(x, images, noise, distance)]), labels))
            optimizer.step()
            with torch.no_grad():
                for scale in scales.values():
                    scale.clamp_(0, 1)
    doubted(torch.cat([scale.detach() for scale in scales.values() if scale.grad is not None]))
    gamma = scales_of_norms(gated)
    blended = {name: 2 * scale.detach() - 1 for name, scale in scales.items() if scale.grad is not None}
    return with_the_rest(gated, {name: gamma.get(name, 1.0) * each for name, each in blended.items()})


def doubted(scales: Tensor) -> None:
    """Log a warning where scales (n) tell few units apart: nearly all at one end, or hardly any on its way."""
    ends = {end: float((scales == end).float().mean()) for end in (0, 1)}
    end = max(ends, key=lambda each: ends[each])
    log = logging.getLogger(__name__)
    if ends[end] > CROWDED:
        text = f"{100 * ends[end]:.0f} % of SCOP's scales k have ended at {end}, so units score by |gamma| alone"
        log.warning("%s; set fewer `epochs` of the criterion", text)
    elif float((scales - 0.5).abs().max()) < STILL:
        log.warning("SCOP's scales k are all at 0.5 still; set more `epochs` of the criterion, or criterion_batches")


def _loss(frozen: GatedModel, both: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of images (b ...), behind which stand their knockoffs (b ...), which have no labels."""
    with torch.enable_grad():
        loss = F.cross_entropy(frozen.opened()(both)[: len(labels)], labels)
    if not loss.requires_grad:
        raise SpaceError(
            "SCOP blends what convolutions and linear layers write, and none writes an axis of this search space; "
            "choose another criterion, such as taylor"
        )
    if not bool(loss.isfinite()):
        raise DivergedError("the loss of SCOP is not a number; check the images, the labels and the weights")
    return loss


def _blending(frozen: GatedModel, images: int) -> dict[str, Tensor]:
    """Scales k (c) per free axis, with which from now on each layer of a model blends what it writes.

    ``images``: a divisor of the size of all batches. BatchNorm looks at the batch from now on.
    """
    free, like = frozen.space.free.items(), next(frozen.backbone.parameters())
    scales = {name: like.new_full((axis.size,), 0.5).requires_grad_() for name, axis in free}
    for tensor, dim in dict.fromkeys((tensor, dim) for each in frozen.writers.values() for tensor, dim, _ in each):
        layer = frozen.backbone.get_submodule(tensor.rpartition(".")[0])
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and tensor.endswith(".weight"):
            term, place = frozen.axes.tensors[tensor][dim], -1 if isinstance(layer, nn.Linear) else 1
            masked = partial(frozen.axes.mask, term, scales)
            layer.register_forward_hook(partial(_blend, masked, place, images))
    for module in frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return scales


def _blend(scales: Callable[[], Tensor], place: int, images: int, layer: nn.Module, *passed: Any) -> Tensor:
    """Forward hook of a layer: what it writes for images is blended with what it writes for their knockoffs."""
    output: Tensor = passed[-1]
    if len(output) % (2 * images):
        raise SpaceError(
            f"SCOP blends images along the first dimension, and a {type(layer).__name__} writes something else there "
            f"({len(output)} rows for a multiple of {2 * images} images); freeze its axes, or choose another criterion"
        )
    (real, knockoff), keep = output.chunk(2), scales()
    keep = keep.repeat(output.shape[place] // len(keep))  # groups of a transposed convolution share units
    return torch.cat([knockoff + along(keep, real, place) * (real - knockoff), knockoff])
