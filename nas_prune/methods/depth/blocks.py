"""The blocks of a network, in the order in which they run: modules that add something to what goes through them.

A block of a ResNet is one residual branch, one of a transformer two. A block that also changes the shape of what goes
through it (the first of a stage) has no branch that can be closed, and always stays.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.methods.depth.cka import centred_gram, cka
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.branches import sums
from nas_prune.tracing.graph.capture import evaluating, output_tensors


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
    seen: dict[str, Tensor] = {}
    backbone = gated.backbone
    with ExitStack() as stack:

        def before(module: nn.Module, given: tuple[Any, ...]) -> None:  # noqa: ARG001
            seen["into"] = centred_gram(given[0])

        stack.callback(backbone.get_submodule(found[0].path).register_forward_pre_hook(before).remove)
        for block in found:

            def after(module: nn.Module, given: Any, output: Any, path: str = block.path) -> None:  # noqa: ARG001
                seen[f"out of {path}"] = centred_gram(output_tensors(output)[0])

            stack.callback(backbone.get_submodule(block.path).register_forward_hook(after).remove)
        gated.opened()(images)
    return [seen["into"], *(seen[f"out of {block.path}"] for block in found)]
