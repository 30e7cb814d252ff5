"""Random-dot stereograms (Julesz): no eye alone sees anything, both together a square before, or behind, a plane."""

import torch
from torch import Tensor


def stereograms(
    count: int, *, height: int = 16, width: int = 32, disparities: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right views (count 3 h w), and the disparity (count h w) of each pixel of the left one: it shows
    what the right one does so many pixels further left. The right view is in another light.
    """
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(count, 3, height, width, generator=generator)
    plane, square = torch.randint(disparities, (2, count, 1, 1), generator=generator)
    side = height // 2
    top, left = (torch.randint(size - side, (count, 1, 1), generator=generator) for size in (height, width))
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    disparity = torch.where(inside, square, plane)
    source = columns - disparity
    seen = right.gather(3, source.clamp(min=0)[:, None].expand(-1, 3, -1, -1))
    fresh = torch.rand(seen.shape, generator=generator)  # what lies outside of the right view
    light = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.where((source >= 0)[:, None], seen, fresh), light * right, disparity
