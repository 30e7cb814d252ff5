"""Augmentation of a whole batch of small images at once, as one affine map for each image.

Flip, crop and shift are one ``grid_sample``: two cores augment faster than they could load files. What falls outside
the image repeats its border. Erasing fills a random rectangle with the mean (Random Erasing, arXiv 1708.04896; areas
and proportions are timm's); Cutout (arXiv 1708.04552) fills a square around a random pixel, as far as it is inside.
Everything random comes from the generator that is passed in.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from nas_prune.train.data.settings import DataSettings

_PROPORTIONS = (math.log(3 / 4), math.log(4 / 3))  # of random resized crops
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_PROPORTIONS = (math.log(0.3), math.log(1 / 0.3))


def augment(images: Tensor, settings: DataSettings, generator: torch.Generator) -> Tensor:
    """Square normalised images (b c h w), cropped, shifted, flipped, erased and cut at random as the settings say."""
    if settings.hflip or settings.shift or settings.crop_scale != (1.0, 1.0):
        grid = _places(len(images), images.shape[-1], settings, generator)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = _erase(images, settings.random_erasing, generator) if settings.random_erasing else images
    return cut(images, settings.cutout, generator) if settings.cutout else images


def cut(images: Tensor, side: int, generator: torch.Generator | None = None) -> Tensor:
    """Normalised images (b c h w), each the mean in a square of ``side`` pixels around a random pixel."""
    rows, columns = (_around(size, side, len(images), generator) for size in images.shape[2:])
    return images.masked_fill(rearrange(rows, "b h -> b 1 h 1") & rearrange(columns, "b w -> b 1 1 w"), 0.0)


def _around(size: int, side: int, b: int, generator: torch.Generator | None) -> Tensor:
    """(b size): which positions lie in a segment of length ``side`` around a random one."""
    start = torch.randint(size, (b, 1), generator=generator) - side // 2
    position = torch.arange(size)
    return (position >= start) & (position < start + side)


def _places(b: int, size: int, settings: DataSettings, generator: torch.Generator) -> Tensor:
    """(b h w 2): where in the input, in coordinates of [-1, 1], each output position looks, x before y."""
    area = _uniform(b, settings.crop_scale, generator)
    proportion = _uniform(b, _PROPORTIONS, generator).exp() if settings.crop_scale != (1.0, 1.0) else torch.ones(b)
    scale = torch.stack([(area * proportion).sqrt(), (area / proportion).sqrt()], dim=1).clamp(max=1.0)  # b 2
    centre = (1 - scale) * (2 * torch.rand(b, 2, generator=generator) - 1)
    pixels = torch.randint(-settings.shift, settings.shift + 1, (b, 2), generator=generator)
    flip = torch.where(torch.rand(b, generator=generator) < settings.hflip, -1.0, 1.0)
    mirrored = scale * torch.stack([flip, torch.ones(b)], dim=1)
    position = (2 * torch.arange(size) + 1) / size - 1
    looked_at = torch.einsum("bk,n->bkn", mirrored, position) + rearrange(centre + 2 * pixels / size, "b k -> b k 1")
    x, y = looked_at.unbind(dim=1)
    return torch.stack([repeat(x, "b w -> b h w", h=size), repeat(y, "b h -> b h w", w=size)], dim=3)


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    b, _, h, w = images.shape
    area = _uniform(b, _ERASED_AREA, generator)
    proportion = _uniform(b, _ERASED_PROPORTIONS, generator).exp()
    rows = _inside(h, (area * proportion).sqrt(), generator)  # b h
    columns = _inside(w, (area / proportion).sqrt(), generator)  # b w
    chosen = torch.rand(b, generator=generator) < probability
    hit = rearrange(chosen, "b -> b 1 1 1") & rearrange(rows, "b h -> b 1 h 1") & rearrange(columns, "b w -> b 1 1 w")
    return images.masked_fill(hit, 0.0)


def _inside(size: int, share: Tensor, generator: torch.Generator) -> Tensor:
    """(b) shares of a side -> (b size): which positions lie in a segment of that length at a random place."""
    length = rearrange((share.clamp(max=1.0) * size).round(), "b -> b 1")
    start = ((size - length + 1) * torch.rand(len(share), 1, generator=generator)).floor()
    position = torch.arange(size)
    return (position >= start) & (position < start + length)


def _uniform(b: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(b, generator=generator)
