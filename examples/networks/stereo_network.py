"""A small stereo network with local similarity patterns and self-reassembling of costs and disparities.

Liu, Yu, Long, "Local Similarity Pattern and Cost Self-Reassembling for Deep Stereo Matching Networks" (arXiv
2112.01011). One tower describes both views, by features and by how alike a pixel is to its neighbours; a volume holds
the description of a pixel beside that of each pixel which it may be in the other view; small 3-D convolutions make
costs of it, and an image-guided resampling sharpens first these, then the disparities.

Ours: full resolution, two 3-D convolutions in place of stacked hourglasses, two convolutions in place of the U-Net that
guides. The tower is called twice, so it has one set of widths; channel c of its output is read twice, by columns c and
C + c of the first 3-D convolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, smooth_l1_loss

from nas_prune.ops.local_similarity import NEIGHBOURS, local_similarity, self_reassemble

WINDOW, SPREAD = 5, 2.0  # disparities around the best that count; b of the target distribution


class StereoNetwork(nn.Module):
    """left, right (b 3 h w) -> disparity (b h w), before and after its refinement, and log-probabilities (b d h w)."""

    def __init__(
        self, disparities: int = 6, *, width: int = 16, stages: int = 3, dilations: Sequence[int] = (1, 2)
    ) -> None:
        super().__init__()
        self.disparities = disparities
        self.tower = Tower(width, stages, dilations)
        self.volume = nn.Sequential(convolution(2 * width, width, 3), convolution(width, width, 3))
        self.cost = nn.Conv3d(width, 1, 3, padding=1)
        self.guide = nn.Sequential(convolution(3, width), convolution(width, width))
        self.costs, self.depths = Reassembling(width), Reassembling(width)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Match, reassemble costs, read off disparities, reassemble these."""
        pair = concatenation_volume(self.tower(left), self.tower(right), self.disparities)
        guide = self.guide(left)
        costs = self.costs(self.cost(self.volume(pair)).squeeze(1), guide)
        disparity = soft_argmax(costs, WINDOW)
        refined = self.depths(disparity[:, None], guide).squeeze(1)
        return disparity, refined, costs.log_softmax(1)


class Tower(nn.Module):
    """What both views are described by: stages of features, patterns of each, both joined. (b 3 h w) -> (b c h w).

    Patterns are of an embedding of features that it does not train, as in the release.
    """

    def __init__(self, width: int, stages: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.stages = nn.ModuleList(convolution(3 if n == 0 else width, width) for n in range(stages))
        self.embeds = nn.ModuleList(
            nn.Sequential(convolution(width, width), nn.Conv2d(width, width, 1)) for _ in self.stages
        )
        self.patterns = nn.ModuleList(
            nn.ModuleList(convolution(len(NEIGHBOURS), 4, side=1) for _ in dilations) for _ in self.stages
        )
        described = stages * (width + 4 * len(self.dilations))
        self.join = nn.Sequential(convolution(described, width), nn.Conv2d(width, width, 1))

    def forward(self, view: Tensor) -> Tensor:
        """Matching features of a view."""
        found, x = [], view
        for stage, embed, patterns in zip(self.stages, self.embeds, self.patterns, strict=True):
            x = stage(x)
            embedded = embed(x.detach())
            alike = [
                pattern(local_similarity(embedded, dilation))
                for dilation, pattern in zip(self.dilations, patterns, strict=True)
            ]
            found += [x, *alike]
        out: Tensor = self.join(torch.cat(found, 1))
        return out


class Reassembling(nn.Module):
    """Each pixel of a map becomes a weighted mean of ``samples`` places, which a guide chooses; at first, of itself.

    The gradient that reaches offsets and weights is a hundredth, as in the release.
    """

    def __init__(self, guide: int, samples: int = 2) -> None:
        super().__init__()
        self.samples = samples
        self.offsets, self.weights = nn.Conv2d(guide, 2 * samples, 1), nn.Conv2d(guide, samples, 1)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x (b d h w), guide (b c h w) -> (b d h w)."""
        offsets, weights = (calmed(layer(guide), 0.01) for layer in (self.offsets, self.weights))
        return self_reassemble(x, offsets.unflatten(1, (self.samples, 2)), weights.sigmoid())


def convolution(entering: int, width: int, dims: int = 2, side: int = 3) -> nn.Sequential:
    """A convolution over two or three dimensions, a norm, a rectifier."""
    layer, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
    return nn.Sequential(layer(entering, width, side, padding=side // 2, bias=False), norm(width), nn.ReLU())


def concatenation_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """left, right (b c h w) -> (b 2c d h w): left(y, x) beside right(y, x - d), which is 0 outside."""
    width = right.shape[3]
    pairs = [torch.cat([left, pad(right, (d, 0))[:, :, :, :width]], 1) for d in range(disparities)]
    return torch.stack(pairs, 2)


def soft_argmax(costs: Tensor, window: int) -> Tensor:
    """Costs (b d h w), higher is likelier -> the mean disparity (b h w), ``window`` around the likeliest."""
    places = torch.arange(costs.shape[1], device=costs.device, dtype=costs.dtype).reshape(1, -1, 1, 1)
    near = (places - costs.argmax(1, keepdim=True)).abs() <= window
    share = costs.softmax(1) * near
    return (share * places).sum(1) / share.sum(1)


def calmed(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by ``factor``."""
    return factor * x + (1 - factor) * x.detach()


def stereo_loss(said: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> Tensor:
    """Of what the network said, where disparities (b h w) are ``wanted``: the cross-entropy with a distribution about
    the right one (UDC), and a tenth of the distance from it, before and after the refinement.
    """
    disparity, refined, told = said
    places = torch.arange(told.shape[1], device=told.device).reshape(1, -1, 1, 1)
    target = (-(places - wanted[:, None]).abs() / SPREAD).to(told.dtype).softmax(1)
    distance = smooth_l1_loss(disparity, wanted.to(told.dtype)) + smooth_l1_loss(refined, wanted.to(told.dtype))
    return -(target * told).sum(1).mean() + 0.1 * distance
