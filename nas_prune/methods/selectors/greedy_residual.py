"""Greedy residual: the units of each axis that answer best for what its readers still miss, chosen again and again.

Wolfe and Kyrillidis, "i-SpaSP: Structured Neural Pruning via Sparse Signal Recovery" (arXiv 2112.04905): which s hidden
units keep the output of a block is the question of CoSaMP. With h (n p) what the second layer of the block reads, at p
positions of all images, U = W h its output (scaled by the BatchNorm behind it), and S the units that stay, empty at
first:

    V = U - W[:, S] h[S]              what is missed
    y = sum over p of W^T V           how each unit correlates with it
    T = the 2 s largest of y, and S
    S = the s of T with the largest sum over p of h

for ``iterations`` rounds, or until S comes back. Blocks follow one another in the order in which they run, each on what
the network reads that is pruned up to it. Both sums are signed, as h is not negative behind a ReLU.

Ours: where h is negative at times (GELU, SiLU, residual sums without a ReLU), the norms of rows take the place of both
sums. What nothing reads counts as saying nothing: in the paper it is as strong as it is loud, and once it is among the
2 s it stays. Of several layers that read an axis (the stages of a residual network), y and the sums over p are added
up, each with what it misses itself. The BatchNorm has its own statistics, so it scales V and no more. The paper is
given widths, by hand; here every axis keeps the same share, the largest within the limit, as in ``uniform``.
Axes that no plain convolution or linear layer reads keep the units of the highest scores; of branches and candidates
the best stay. The paper trains each block for an epoch before the next. A selector does not train: with
``search.compensation: ridge`` layers are refitted after the decision, in closed form, and fine-tuning comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from nas_prune.base.axis import BITS
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, axes_of, first_images, mixing, owners, read, weight_of
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import uniform_sizes
from nas_prune.methods.writing import along
from nas_prune.tracing.arch import Arch

ITERATIONS = 20  # authors' code
AT_ONCE = 64  # images in one pass through a layer
IMAGES = 256  # ours: all that is read by a layer is held; the authors' code looks at 1280


@selectors.register("greedy_residual")
def greedy_residual(
    question: Question, *, iterations: PositiveInt = ITERATIONS, images: PositiveInt = IMAGES
) -> Decision:
    """The units of every axis that keep what its readers say, of one share for all widths within the limit.

    Raises BudgetError where the smallest network is above it, DataError without a model or a batch.
    """
    gated, sizes = question.model("greedy_residual"), uniform_sizes(question)
    looked_at = first_images(question.batches, images, "the selector greedy_residual")
    dense, arch = Arch.dense(gated.axes).kept, best_units(question.scores, sizes)
    kept = {name: arch.kept[name] for name in sizes if name not in question.space.alone}
    for name, of in _readers_of(gated).items():
        blocks = _blocks(gated, name, of, Arch({**dense, **kept}), looked_at)
        kept[name] = support(blocks, int(sizes[name]), iterations).tolist() if blocks else arch.kept[name]
    return Decision(Arch({**arch.kept, **kept}))


def support(blocks: Sequence[Block], size: int, iterations: int) -> Tensor:
    """The ``size`` units that keep best what the readers of an axis say."""
    strength = torch.stack([block.strength() for block in blocks]).sum(0)
    stays = torch.zeros_like(strength)
    for _ in range(iterations):
        answers = torch.stack([block.answers(stays) for block in blocks]).sum(0)
        among = stays.index_fill(0, answers.topk(min(2 * size, len(answers))).indices, 1)
        best = torch.where(among > 0, strength, -torch.inf).topk(size).indices
        before, stays = stays, torch.zeros_like(stays).index_fill(0, best, 1)
        if torch.equal(stays, before):
            break
    return stays.nonzero().flatten()


@dataclass(frozen=True)
class Block:
    """What one layer reads of one axis, ``x``, zero where it is not of the axis; ``gain`` (o) of what it says.

    ``owner``: which unit each entry (n) belongs to, -1 for none; ``signed``: whether sums are taken of numbers with
    their signs, or of their squares.
    """

    gated: GatedModel
    reader: Reader
    x: Tensor
    owner: Tensor
    gain: Tensor
    units: int
    signed: bool

    def strength(self) -> Tensor:
        """How much each unit says (c)."""
        read_by = weight_of(self.gated, self.reader).abs().movedim(1, 0).flatten(1).sum(1)
        heard = along((read_by > 0).to(self.x), self.x, self.reader.site.dim)
        return self._per_unit(self.x * heard)

    def answers(self, stays: Tensor) -> Tensor:
        """How each unit correlates with what is missed (c) when of the units (c) only these stay."""
        weight, whole = weight_of(self.gated, self.reader), torch.zeros_like(stays)
        missing = torch.where(self.owner < 0, 0, 1 - stays[self.owner.clamp(min=0)])
        for x in torch.split(self.x, AT_ONCE):
            leaf = x.clone().requires_grad_()
            with torch.enable_grad():
                said = self.reader.outputs(self.gated.backbone, weight, leaf)
            missed = self.reader.outputs(self.gated.backbone, weight, x * along(missing, x, self.reader.site.dim))
            whole += self._per_unit(torch.autograd.grad(said, leaf, missed.detach() * self.gain.square())[0])
        return whole

    def _per_unit(self, values: Tensor) -> Tensor:
        """The sum (c) of the numbers of each unit, or of their squares."""
        entries = self.reader.entries(values if self.signed else values.square()).sum(0)
        own = self.owner >= 0
        return entries.new_zeros(self.units).index_add(0, self.owner[own], entries[own])


def _readers_of(gated: GatedModel) -> dict[str, list[Reader]]:
    """Axis -> the layers that read and sum over it, in the order in which the first of them run; branches are none."""
    found: dict[str, list[Reader]] = {}
    for reader in mixing(gated).values():
        for name in axes_of(gated, reader.term):
            found.setdefault(name, []).append(reader)
    return {name: of for name, of in found.items() if gated.axes[name].kind not in BITS}


def _blocks(gated: GatedModel, name: str, of: Sequence[Reader], arch: Arch, images: Sequence[Tensor]) -> list[Block]:
    """What the layers that are computed read of an axis in the network of an architecture, all of it open."""
    batches = [read(gated, arch, of, each) for each in images]
    found = []
    for reader in of:
        if reader.path not in batches[0]:
            continue
        x = torch.cat([each[reader.path] for each in batches])
        owner = owners(gated, name, reader.term).to(x.device)
        found.append((reader, x * along((owner >= 0).to(x), x, reader.site.dim), owner))
    signed = all(bool((x >= 0).all()) for _, x, _ in found)
    return [
        Block(gated, reader, x, owner, _gain(gated, reader), gated.axes[name].size, signed)
        for reader, x, owner in found
    ]


def _gain(gated: GatedModel, reader: Reader) -> Tensor:
    """What the BatchNorm behind a layer multiplies its outputs by (o); ones where there is none."""
    weight = weight_of(gated, reader)
    if reader.norm is None:
        return weight.new_ones(len(weight))
    norm = gated.backbone.get_submodule(reader.norm)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    scale = norm.weight.detach() if norm.affine else 1.0
    return scale / (norm.running_var + norm.eps).sqrt()
