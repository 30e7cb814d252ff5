"""ManiDP's gate: which channels an image needs is said by the image, before they are computed.

Tang et al., "Manifold Regularized Dynamic Network Pruning" (CVPR 2021, arXiv 2103.05861); formulas and constants as in
the public code (huawei-noah/Pruning, ManiDP). The branch is that of ``ops/skipping.py``; its threshold xi is moved by
the mover ``saliency``, epoch by epoch, from what the gate has seen: the mean saliency of each channel over all images.

The paper's: squeeze by 2, by 1 below 80 channels; saliencies multiply what they keep; the gate of a convolution looks
at what that reads, gated already. Ours: what a block adds to the stream has no gate of its own, as all that is added
there is one axis here, and that stays open; the branch learns by Adam, as all gates do; and a unit's score, by which
it goes for good, is how often it fires less ``rare``. Before that, its mean where it fires moves into the weights that
read it, so that in the smaller static model a unit counts as much as it did on the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.axis import Kind
from nas_prune.base.errors import SpaceError
from nas_prune.methods.gates.gate import Gate, gates
from nas_prune.methods.gates.mask import Mask
from nas_prune.ops.skipping import Saliency

NARROW = 80  # channels below which nothing is squeezed
ROUNDING = 1e-9  # (1 - (1 - 3 / 10)) * 10 is 3.0000000000000004 units


class Looked:
    """What a gate has seen in the last forward pass of training: ``saliency`` (b c) before the threshold, and the
    ``features`` (b c), means of what was gated, as they were before; None before the first one."""

    saliency: Tensor | None = None
    features: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Looked:  # a copy has seen nothing
        return Looked()


@gates.register("dynamic")
class Dynamic(Gate):
    """``squeeze``: how many times fewer units the branch has than channels. ``rare``: share of the images that a unit
    has to fire for in the last epoch, or it counts as closed (ours)."""

    looks = True
    total: Tensor
    fired: Tensor
    strength: Tensor
    images: Tensor
    frequency: Tensor
    level: Tensor

    def __init__(self, size: int, fan_in: Sequence[int], *, squeeze: int = 2, rare: float = 0.01) -> None:
        super().__init__(size, fan_in)
        self.hidden, self.rare = size // (squeeze if size >= NARROW else max(1, squeeze // 2)), rare
        self.branch: Saliency | None = None
        self.looked = Looked()
        for name in ("total", "fired", "strength"):
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("images", torch.zeros(()))
        self.register_buffer("frequency", torch.ones(size))
        self.register_buffer("level", torch.ones(size))

    @classmethod
    def on(cls, kind: Kind, size: int, fan_in: Sequence[int], *, striped: bool, **options: Any) -> Gate:
        """One for what a single layer writes; a mask, which stays open, for all else."""
        alone = kind in ("channel", "hidden") and len(fan_in) == 1 and not striped
        return cls(size, fan_in, **options) if alone else Mask(size, fan_in)

    def face(self, channels: int) -> None:
        """Build the branch. Raises SpaceError where a layer reads its inputs in groups, which removals would mix up."""
        if self.fan_in[0] % channels:
            raise SpaceError(
                f"a gate called dynamic looks at all {channels} inputs of a layer, which reads them in groups: freeze "
                "the axis that this layer writes, or choose another gate"
            )
        self.branch = Saliency(channels, self.hidden, self.size)

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """How often each unit fired in the last epoch (c), less ``rare``; at first, always."""
        return self.frequency - self.rare

    def open(self, score: Tensor) -> Tensor:
        """1 for a unit that fires often enough, else 0: what counts where no image is looked at."""
        return (score >= 0).to(score.dtype)

    def forward(self, weight: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """Saliencies (b c) over the threshold, else 0, of images x (b ... i)."""
        if x is None or self.branch is None:
            return super().forward(weight, x)
        saliency: Tensor = self.branch(_means(x))
        if self.training:
            self._remember(saliency)
        return self.branch.kept(saliency)

    @torch.no_grad()
    def _remember(self, saliency: Tensor) -> None:
        assert self.branch is not None
        self.looked.saliency, firing = saliency, self.branch.firing(saliency)
        self.total += saliency.sum(0)
        self.fired += firing.sum(0)
        self.strength += saliency.where(firing, 0).sum(0)
        self.images += len(saliency)

    def mix(self, x: Tensor, keep: Tensor) -> Tensor:
        """The product; while it trains, a penalty may ask for the means of x."""
        if self.training:
            self.looked.features = x.mean([dim for dim in range(1, x.ndim) if keep.shape[dim] == 1])
        return x * keep

    def charged(self, keep: Tensor) -> Tensor:
        """1 for each unit of each image (b c) that fires; gradients go straight through (ours)."""
        return (keep > 0).to(keep.dtype) + (keep - keep.detach())

    @torch.no_grad()
    def turn(self, share: float | None) -> None:
        """An epoch is over: take a threshold that the mean saliencies of this share of the units reach (None: keep the
        one there is), and begin to count anew."""
        if self.branch is None or not self.images:
            return
        if share is not None:
            order = (self.total / self.images).sort(descending=True).values
            self.branch.threshold.copy_(order[max(1, ceil(share * self.size - ROUNDING)) - 1])
        self.frequency.copy_(self.fired / self.images)
        self.level.copy_((self.strength / self.fired.clamp(min=1)).where(self.strength > 0, 1.0))
        for count in (self.total, self.fired, self.strength, self.images):
            count.zero_()

    @torch.no_grad()
    def scaled(self, factor: Tensor) -> None:
        """Let the branch see what it saw."""
        if self.branch is not None:
            self.branch.first.weight.mul_(factor)

    @torch.no_grad()
    def handed_over(self) -> Tensor | None:
        """The mean of what is kept of each unit where it fires."""
        if self.branch is None:
            return None
        self.branch.level.mul_(self.level)
        handed = self.level.clone()
        self.level.fill_(1.0)
        return handed

    def narrowed(self, units: Tensor, columns: Sequence[Tensor | None]) -> Gate:
        """This gate for the units (c') that stay, looking at the channels that do."""
        small = super().narrowed(units, columns)
        assert isinstance(small, Dynamic)
        if self.branch is not None and columns[0] is not None:
            first, second, level = self.branch.first.weight, self.branch.second, self.branch.level
            seen = torch.unique(columns[0] // (self.fan_in[0] // first.shape[1])).to(first.device)
            assert small.branch is not None
            small.branch.first.weight = nn.Parameter(first.detach()[:, seen])
            small.branch.second.weight = nn.Parameter(second.weight.detach()[units])
            small.branch.second.bias = nn.Parameter(second.bias.detach()[units])
            small.branch.level = level[units].clone()
        return small


def _means(x: Tensor) -> Tensor:
    """Means (b i) of what is read (b ... i)."""
    return x if x.ndim == 2 else x.mean(list(range(1, x.ndim - 1)))
