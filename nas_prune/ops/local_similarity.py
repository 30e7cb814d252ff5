"""Local similarity pattern: a pixel is described by how similar its neighbours are to it.

Liu, Yu, Long, "Local Similarity Pattern and Cost Self-Reassembling for Deep Stereo Matching Networks" (AAAI 2022, arXiv
2112.01011). With features of unit length and the eight neighbours delta,

    A_d[delta](p) = max(0, <f(p), f(p + d delta)>)

which sees structure, and no change of brightness. The residual operation is ours: its patterns are 8 per dilation
whatever the width of the embedding, so the embedding is a width that nothing else depends on. In the release, patterns
do not train the features that they are of: the embedding reads these detached. Here that is an option.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Self

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize, pad

from nas_prune.base.errors import SpaceError
from nas_prune.ops.geometry import made, same_geometry
from nas_prune.ops.operation import Operation, operations

NEIGHBOURS = tuple(delta for delta in product((-1, 0, 1), repeat=2) if delta != (0, 0))  # (row, column)


@operations.register("local_similarity")
class LocalSimilarity(Operation):
    """x + Conv1x1(the patterns of Embed1x1(x), for each of the ``dilations``).

    ``detach``: whether the patterns train nothing before the embedding.
    """

    def __init__(self, *, channels: int, embedding: int, dilations: Sequence[int] = (1,), detach: bool = False) -> None:
        super().__init__(channels=channels, embedding=embedding, dilations=list(dilations), detach=detach)
        if not dilations or min(dilations) < 1:
            raise SpaceError(f"local similarity needs dilations of at least 1; got {list(dilations)}")
        self.embed = nn.Conv2d(channels, embedding, 1)
        self.dilation, self.detach = tuple(dilations), detach
        self.project = nn.Conv2d(len(NEIGHBOURS) * len(dilations), channels, 1)

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Options: ``embedding`` (a quarter of the channels if left out), ``dilations`` and ``detach``."""
        known = same_geometry(module, cls)
        if known.stride != 1 or known.in_channels != known.out_channels:
            raise SpaceError(f"local similarity keeps size and channels; {module} does not")
        embedding = max(1, known.in_channels // 4)
        return made(cls, {"channels": known.in_channels, "embedding": embedding, **options}, module)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) -> (b c h w)."""
        features = self.embed(x.detach() if self.detach else x)
        patterns = torch.cat([local_similarity(features, dilation) for dilation in self.dilation], 1)
        out: Tensor = x + self.project(patterns)
        return out


def local_similarity(features: Tensor, dilation: int = 1) -> Tensor:
    """features (b c h w) -> (b 8 h w), in [0, 1]; what lies outside is similar to nothing.

    The neighbours are visited one after the other, so that no tensor is larger than the features.
    """
    height, width = features.shape[2:]
    unit = normalize(features, dim=1)
    around = pad(unit, (dilation,) * 4)
    similar = []
    for row, column in NEIGHBOURS:
        top, left = dilation * (1 + row), dilation * (1 + column)
        shifted = around[:, :, top : top + height, left : left + width]
        similar.append(einsum(unit, shifted, "b c h w, b c h w -> b h w"))
    return torch.stack(similar, 1).clamp(min=0)


def cost_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """left, right (b c h w) -> (b d h w): minus the mean squared difference of left(y, x) and right(y, x - d)."""
    width = right.shape[3]
    shifted = [pad(right, (d, 0))[:, :, :, :width] for d in range(disparities)]
    return -torch.stack([(left - each).square().mean(1) for each in shifted], 1)


def self_reassemble(volume: Tensor, offsets: Tensor, modulations: Tensor) -> Tensor:
    """Cost self-reassembling: each pixel of a volume becomes a weighted mean of k other places, the same for all d.

    volume (b d h w), offsets (b k 2 h w) in pixels (row, column), modulations (b k h w), not negative -> (b d h w).
    Zero offsets are the identity (pixels counted from 0, corners aligned; the paper's release differs). Outside is 0.
    """
    size = torch.tensor(volume.shape[2:], device=volume.device)
    rows, columns = (torch.arange(n, device=volume.device) for n in volume.shape[2:])
    pixels = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    total = torch.zeros_like(volume)
    for offset, weight in zip(offsets.unbind(1), modulations.unbind(1), strict=True):
        places = (pixels + rearrange(offset, "b two h w -> b h w two")) * 2 / (size - 1).clamp(min=1) - 1
        sampled = grid_sample(volume, places.flip(-1), mode="bilinear", padding_mode="zeros", align_corners=True)
        total = total + sampled * rearrange(weight, "b h w -> b 1 h w")
    return total / (modulations.sum(1, keepdim=True) + 1e-8)
