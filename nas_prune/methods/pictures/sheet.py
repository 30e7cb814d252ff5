"""A contact sheet of pictures: group after group, on two greys in turn, what goes faded."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, EDGE, ACROSS, MOST = 32, 2, 24, 96  # pixels of a picture and its frame; pictures in a row, and in all
GREYS = (0.82, 0.62)
FADED = 0.25


def sheet(pictures: Tensor, group: Tensor, scores: Tensor, kept: Collection[int]) -> Tensor:
    """Pictures (c i h w) as an image (3 h w) of bytes; in a group, the one of the highest score first."""
    shown = sorted(range(len(group)), key=lambda unit: (int(group[unit]), -float(scores[unit])))[:MOST]
    across = min(ACROSS, len(shown))
    numbers = {number: index for index, number in enumerate(dict.fromkeys(int(group[unit]) for unit in shown))}
    tiles = [_tile(pictures[unit], GREYS[numbers[int(group[unit])] % 2], unit in kept) for unit in shown]
    tiles += [torch.ones_like(tiles[0])] * (-len(tiles) % across)
    rows = [torch.cat(tiles[first : first + across], 2) for first in range(0, len(tiles), across)]
    return (255 * torch.cat(rows, 1)).round().byte()


def _tile(picture: Tensor, grey: float, stays: bool) -> Tensor:
    """One picture (3 s s) in its frame, between 0 and 1."""
    colours = picture.float().expand(3, -1, -1) if len(picture) == 1 else picture.float()[:3]
    scaled = F.interpolate(colours[None], (SIDE, SIDE), mode="area")[0]
    bright = 0.5 + 0.5 * scaled / scaled.abs().max().clamp(min=torch.finfo(scaled.dtype).tiny)
    shown = bright if stays else 1 - FADED * (1 - bright)
    return F.pad(shown, [EDGE] * 4, value=grey)
