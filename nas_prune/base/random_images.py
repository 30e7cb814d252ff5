"""Random images: what a model is traced, timed and compared on where no data is needed."""

import torch
from torch import Tensor


def random_images(*shape: int, seed: int = 0) -> Tensor:
    """Random images (b c h w), the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
