"""What a compensation is: what layers read of the units that stay is made to stand for what they read of all.

Ours as a whole; least squares on what a layer reads is known from many papers (Channel Pruning, arXiv 1707.06168, among
the first). Every convolution and linear layer that misses units is refitted, in the order in which they run: x (n) is
what it reads in the network as gates leave it, z (m) what it reads of the units that stay in the pruned one, all
layers before it refitted already. Where x is about z, in its place among zeros, plus B z + c, the layer says about the
same if W B is added to the weight of what stays, tap by tap of its kernel, and the sum over taps of W c to its bias, or
taken from the mean that the BatchNorm behind it subtracts; where it has neither, c is zero. No labels are looked at.

A convolution with zero padding reads zeros beyond the borders of an image, and no c: there the bias says too much, by
what the taps outside would have added. W B is right there, too.

The weights that are kept are changed, no gate and no width. Layers with groups, with computed or standardised weights,
or with stripes, and whatever else reads an axis (attention, norms) are left as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nas_prune.base.registry import Registry
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, first_images, mixing, read, weight_of
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.graph.capture import evaluating

WIDEST = 4096  # entries of a layer of which squares are taken
IMAGES = 1024  # ours: two forward passes of so many for each layer that is refitted


class Compensation(Protocol):
    """Called with a gated model, an architecture and batches of images (b c h w), labels (b), where the model is."""

    def __call__(self, gated: GatedModel, arch: Arch, batches: Batches) -> Mapping[str, Tensor]:
        """Edits: name of a parameter or buffer -> its new values, of its dense shape. The model is left as it was."""
        ...


compensations: Registry[Compensation] = Registry("compensation", __package__)


@dataclass(frozen=True)
class Moments:
    """Of z (m), and of x without z in its place (n), in float64: means, and about them ``across`` x z^T (n m) and
    ``within`` z z^T (m m). Means are zero where the layer has no place for a constant.
    """

    x: Tensor
    z: Tensor
    across: Tensor
    within: Tensor


Fit = Callable[[Moments], Tensor]  # moments -> B (n m); c follows, as means agree


def refitted(gated: GatedModel, arch: Arch, batches: Batches, images: int, fit: Fit | None = None) -> dict[str, Tensor]:
    """Edits of all layers that miss units, found on the first ``images``. Without ``fit``, B is zero.

    Raises DataError where there are no images.
    """
    looked_at, trained = first_images(batches, images, "a compensation"), _reference(gated, arch)
    pruned, edits = copy.deepcopy(gated), dict[str, Tensor]()
    keep = {name: arch.keep(axis) for name, axis in gated.space.free.items()}
    for reader in mixing(gated).values():
        kept = gated.axes.mask(reader.term, keep).nonzero().flatten().to(looked_at[0].device)
        absent = any(_absent(gated, each, reader) for each in (arch, trained))
        if not 0 < len(kept) < reader.term.size or absent:
            continue
        fits = fit if reader.term.size <= WIDEST else None
        pairs = (tuple(_read(*each, reader, x) for each in ((gated, trained), (pruned, arch))) for x in looked_at)
        moments = _moments(pairs, kept, centred=_constant(gated, reader) is not None, squares=fits is not None)
        made = _edits(gated, reader, moments, kept, fits)
        with torch.no_grad():
            for name, value in made.items():
                tensor_of(pruned.backbone, name).copy_(value)
        edits |= made
    return edits


def _constant(gated: GatedModel, reader: Reader) -> tuple[str, int] | None:
    """Where a layer has place for a constant, and the sign that it has there."""
    if gated.backbone.get_submodule(reader.path)._parameters.get("bias") is not None:
        return f"{reader.path}.bias", 1
    return None if reader.norm is None else (f"{reader.norm}.running_mean", -1)


def _reference(gated: GatedModel, arch: Arch) -> Arch:
    """What was trained: all units and branches that are open, and of every choice the candidate of the architecture."""
    with torch.no_grad(), evaluating(gated):
        values = gated.gate_values()
    opened = {name: values[name].nonzero().flatten().tolist() for name in gated.space.alone}
    candidates = {
        name: arch.kept[name] for names in gated.space.choices.values() for name in names if name in arch.kept
    }
    return Arch({**Arch.dense(gated.axes).kept, **opened, **candidates})


def _absent(gated: GatedModel, arch: Arch, reader: Reader) -> bool:
    """Whether a layer is inside of a branch that the architecture leaves out."""
    closed = {branch.name for branch in gated.axes.closed(arch)}
    return any(gated.axes.variables.get(bit) in closed for bit in gated.axes.presence.get(reader.weight, ()))


def _read(gated: GatedModel, arch: Arch, reader: Reader, images: Tensor) -> Tensor:
    """What a layer reads (p n) in the network of an architecture; nothing of closed units."""
    keep = {name: arch.keep(axis) for name, axis in gated.space.free.items()}
    entries = reader.entries(read(gated, arch, [reader], images)[reader.path]).double()
    return entries * gated.axes.mask(reader.term, keep).to(entries)


def _moments(pairs: Iterable[tuple[Tensor, ...]], kept: Tensor, *, centred: bool, squares: bool) -> Moments:
    """Of what is read; ``squares``: those of pairs, too, which take their time and room."""
    sums, count = list[Tensor](), 0
    for x, closed in pairs:
        z = closed[:, kept]
        missing = x.index_add(1, kept, z, alpha=-1)
        now = [missing.sum(0), z.sum(0), *((missing.T @ z, z.T @ z) if squares else ())]
        sums, count = [a + b for a, b in zip(sums, now, strict=True)] if sums else now, count + len(x)
    mean, standing, *others = (each / count * (centred or each.ndim > 1) for each in sums)
    if not squares:
        return Moments(mean, standing, mean.new_zeros(0, 0), mean.new_zeros(0, 0))
    across, within = others
    return Moments(mean, standing, across - torch.outer(mean, standing), within - torch.outer(standing, standing))


def _edits(gated: GatedModel, reader: Reader, moments: Moments, kept: Tensor, fit: Fit | None) -> dict[str, Tensor]:
    """The weight of what stays, and the constant."""
    weight, place = weight_of(gated, reader), _constant(gated, reader)
    whole, found, constant = weight.double(), dict[str, Tensor](), moments.x
    if fit is not None:
        matrix = fit(moments)
        added = torch.einsum("on...,nm->om...", whole, matrix)
        found[reader.weight] = whole.index_add(1, kept, added).to(weight)
        constant = constant - matrix @ moments.z
    if place is not None:
        name, sign = place
        before, taps = tensor_of(gated.backbone, name).detach(), whole.reshape(*whole.shape[:2], -1).sum(2)
        found[name] = (before.double() + sign * taps @ constant).to(before)
    return found
