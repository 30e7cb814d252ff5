"""What a normalisation or mean over a gated axis computes: its statistics over the kept units only.

``keep`` is (c) in [0, 1], one number per unit of the dimension that the statistics run over. With hard gates each
function equals the plain one on the kept units alone; with soft gates the mean becomes a weighted mean (ours).
"""

from math import prod as product

import torch
from einops import rearrange, reduce
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """LayerNorm over the last dimension of x (... c), in two passes: mean, then centred square."""
    count = keep.sum()
    mean = (x * keep).sum(-1, keepdim=True) / count
    centred = (x - mean) * keep
    variance = (centred * (x - mean)).sum(-1, keepdim=True) / count
    y = (x - mean) * torch.rsqrt(variance + eps)
    return _affine(y, weight, bias)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """RMSNorm over the last dimension of x (... c)."""
    square = (x * x * keep).sum(-1, keepdim=True) / keep.sum()
    return _affine(x * torch.rsqrt(square + eps), weight, None)


Affine = tuple[Tensor | None, Tensor | None]


def group_norm(x: Tensor, groups: int, affine: Affine, eps: float, keep: Tensor) -> Tensor:
    """GroupNorm of x (b (g k) ...), ``keep`` (k) closing the same positions in every group; affine: weight, bias."""
    y = rearrange(x.flatten(2), "b (g k) n -> b g k n", g=groups)
    inside = rearrange(keep, "k -> k 1")
    count = keep.sum() * y.shape[-1]
    mean = (y * inside).sum((-2, -1), keepdim=True) / count
    variance = ((y - mean).square() * inside).sum((-2, -1), keepdim=True) / count
    y = rearrange((y - mean) * torch.rsqrt(variance + eps), "b g k n -> b (g k) n").reshape(x.shape)
    weight, bias = (None if each is None else each.reshape(-1, *(1 for _ in x.shape[2:])) for each in affine)
    return _affine(y, weight, bias)


def standardize(weight: Tensor, scale: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """Weight standardisation of a weight (1 o n): statistics over the kept entries of n, one pair per filter."""
    count = keep.sum()
    mean = reduce(weight * keep, "one o n -> one o 1", "sum") / count
    variance = reduce((weight - mean).square() * keep, "one o n -> one o 1", "sum") / count
    y = (weight - mean) * torch.rsqrt(variance + eps)
    return y if scale is None else y * rearrange(scale, "o -> o 1")


def mean(x: Tensor, dims: tuple[int, ...], keepdim: bool, keep: Tensor) -> Tensor:
    """Mean of x over ``dims``, one of them gated; ``keep`` broadcasts against x, one entry per unit."""
    count = product(x.shape[dim] for dim in dims) / keep.numel() * keep.sum()
    return (x * keep).sum(dims, keepdim=keepdim) / count


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias
