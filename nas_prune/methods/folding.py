"""Folding: what soft gates of widths multiply, moved into the weights that read them.

So what is derived computes what the gated model did, and nothing is lost by the last step from soft to open. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.roles.readers import readers

if TYPE_CHECKING:
    from nas_prune.methods.gated import GatedModel


@torch.no_grad()
def fold_widths(gated: GatedModel) -> set[str]:
    """Multiply weights by what the gates that they are read through leave of an open unit; the axes for which that
    could be done. Closed units stay as they are: a selector may open them.
    """
    folded = set[str]()
    with evaluating(gated):
        values = gated.gate_values()
    for name in gated.space.alone:
        keep, gate = values[name], gated.gate(name)
        if gate.site != "read" or not gate.multiplies or gate.looks or not bool(((keep > 0) & (keep < 1)).any()):
            continue
        for tensor, term in readers(gated.axes, name).items():
            weight = tensor_of(gated.backbone, tensor)
            factor = gated.axes.mask(term, {name: keep.where(keep > 0, 1)})
            weight.mul_(factor.to(weight).reshape(1, -1, *[1] * (weight.ndim - 2)))
            folded.add(name)
    return folded


@torch.no_grad()
def hand_over(gated: GatedModel) -> None:
    """Multiply weights by what the gates that they are read through hand over; gates that look at what these weights
    read go on seeing what they saw."""
    looking = {gated.writers[name][0][0]: gated.gate(name) for name in gated.space.alone if gated.gate(name).looks}
    for name in gated.space.alone:
        reading = readers(gated.axes, name)
        handed = gated.gate(name).handed_over() if reading else None
        if handed is None:
            continue
        for tensor, term in reading.items():
            weight, factor = tensor_of(gated.backbone, tensor), gated.axes.mask(term, {name: handed})
            weight.mul_(factor.to(weight).reshape(1, -1, *[1] * (weight.ndim - 2)))
            if tensor in looking:
                looking[tensor].scaled(factor)
