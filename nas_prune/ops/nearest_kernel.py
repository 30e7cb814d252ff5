"""The kernel of another form that is nearest to a given one: what a candidate can start from (ours).

All in the least-squares sense: taps that both forms have are kept and the others are 0, blocks of groups are cut out of
the whole, and a separable kernel is the best one of rank 1 for each input channel (Eckart and Young 1936).
"""

import torch
from einops import einsum, rearrange
from torch import Tensor


def with_taps(weight: Tensor, dilation: int, kernel: int, new_dilation: int) -> Tensor:
    """Weight (o i u u) -> (o i k k): the taps of an odd kernel that lie where another odd kernel has one, too."""
    old = {(tap - weight.shape[2] // 2) * dilation: tap for tap in range(weight.shape[2])}
    pairs = [(tap, old[at]) for tap in range(kernel) if (at := (tap - kernel // 2) * new_dilation) in old]
    new, kept = (torch.tensor(each, device=weight.device) for each in zip(*pairs, strict=True))
    result = weight.new_zeros(*weight.shape[:2], kernel, kernel)
    result[:, :, new[:, None], new] = weight[:, :, kept[:, None], kept]
    return result


def in_groups(weight: Tensor, groups: int, new_groups: int) -> Tensor:
    """Weight (o i/groups k k) -> (o i/new_groups k k): what connects inputs and outputs of one group."""
    if groups == new_groups:
        return weight
    blocks = rearrange(weight, "(g o) i u v -> g o i u v", g=groups)
    whole = einsum(blocks, torch.eye(groups).to(weight), "g o i u v, g h -> g o h i u v")
    whole = rearrange(whole, "g o h i u v -> (g o) (h i) u v")
    split = rearrange(whole, "(g o) (h i) u v -> g h o i u v", g=new_groups, h=new_groups)
    return rearrange(split[range(new_groups), range(new_groups)], "g o i u v -> (g o) i u v")


def separated(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (o i k k) -> depthwise (i 1 k k) and pointwise (o i 1 1): the nearest of rank 1 for each input channel."""
    left, values, right = torch.linalg.svd(rearrange(weight, "o i u v -> i o (u v)"), full_matrices=False)
    root = values[:, :1].sqrt()
    depthwise = rearrange(right[:, 0] * root, "i (u v) -> i 1 u v", u=weight.shape[2])
    return depthwise, rearrange(left[:, :, 0] * root, "i o -> o i 1 1")
