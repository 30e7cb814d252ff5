"""The blocks of a network, in the order in which they run: modules that add something to what goes through them.

A block of a ResNet is one residual branch, one of a transformer two. A block that also changes the shape of what goes
through it (the first of a stage) has no branch that can be closed, and always stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_prune.methods.depth.cka import centred_gram, cka
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.branches import sums
from nas_prune.tracing.graph.capture import evaluating, output_tensors
from nas_prune.tracing.graph.hooks import inputs_of, outputs_of


@dataclass(frozen=True)
class Block:
    """``path`` of a module; ``branches``: the axes of depth that are open in it, all of which go if the block does."""

    path: str
    branches: tuple[str, ...]


def blocks(gated: GatedModel) -> list[Block]:
    """All blocks, outside of branches and choices."""
    axes = gated.axes
    captured = axes.walk.captured
    named = {branch.add: branch.name for branch in axes.branches if branch.kind == "depth"}
    inside = {node for branch in axes.branches for node in branch.inside}
    found: dict[str, list[str]] = {}
    for node in sums(captured):
        owner = captured.owner(node)
        if node not in inside and owner not in captured.choices:
            found.setdefault(owner, []).extend(name for name in [named.get(node)] if name in gated.space.free)
    return [Block(path, tuple(names)) for path, names in found.items() if path or names]


def likeness(gated: GatedModel, found: Sequence[Block], batches: Batches) -> Tensor:
    """CKA (m + 1, m + 1) of what goes into the first of m blocks and what comes out of each, the mean over batches.

    All gates are open, the model in eval mode. Zeros without a batch.
    """
    total, count = torch.zeros(len(found) + 1, len(found) + 1, dtype=torch.float64), 0
    with evaluating(gated), torch.no_grad():
        for images, _ in batches:
            total, count = total + cka(_grams(gated, found, images)).cpu(), count + 1
    return total / max(1, count)


def _grams(gated: GatedModel, found: Sequence[Block], images: Tensor) -> list[Tensor]:
    """Centred Gram matrices (n n) of what goes into the first block and what comes out of each, in their order."""
    into, out = dict[str, Tensor](), dict[str, Tensor]()
    modules = {block.path: gated.backbone.get_submodule(block.path) for block in found}
    first = {found[0].path: modules[found[0].path]}

    def before(path: str, given: tuple[Any, ...]) -> None:
        into[path] = centred_gram(given[0])

    def after(path: str, output: Any) -> None:
        out[path] = centred_gram(output_tensors(output)[0])

    with inputs_of(first, before), outputs_of(modules, after):
        gated.opened()(images)
    return [into[found[0].path], *(out[block.path] for block in found)]
