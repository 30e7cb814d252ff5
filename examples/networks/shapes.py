"""Generated point clouds: five solids, seen from anywhere, with a part missing. Every number follows from the seed."""

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

CLASSES = ("sphere", "box", "cylinder", "cone", "torus")


def shapes(count: int, points: int, *, missing: float = 0.4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clouds (count 3 points) of unit radius, and classes (count). Of each surface, a plane cuts off a share, from
    none to ``missing``, below 1; what is left is seen by so many points, a little noise on them.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    clouds = torch.stack([_cloud(int(label), points, missing, generator) for label in labels])
    return rearrange(clouds, "b n three -> b three n"), labels


def _cloud(label: int, points: int, missing: float, generator: torch.Generator) -> Tensor:
    """One cloud (n 3)."""
    whole = _surface(label, math.ceil(points / (1 - missing)), generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    whole = whole @ turn
    gone = int(len(whole) * missing * float(torch.rand((), generator=generator)))
    left = whole[whole[:, 0].argsort()[gone:]]  # turned at random, so the plane may stand anywhere
    few = left[torch.randperm(len(left), generator=generator)[:points]]
    few = few + 0.01 * torch.randn(few.shape, generator=generator)
    few = few - few.mean(0)
    return few / few.norm(dim=1).max()


def _surface(label: int, count: int, generator: torch.Generator) -> Tensor:
    """Points (n 3) on a solid about the origin, of proportions that differ from one to the next."""
    u, v, w = torch.rand(3, count, generator=generator)
    stretch = 0.7 + 0.6 * torch.rand(3, generator=generator)
    angle, height = 2 * torch.pi * u, 2 * v - 1
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    if CLASSES[label] == "sphere":
        return normalize(torch.randn(count, 3, generator=generator), dim=1) * stretch
    if CLASSES[label] == "box":
        side, sign = (6 * w).long() % 3, 2.0 * (6 * w >= 3) - 1
        faces = torch.stack([2 * u - 1, height, 2 * w - 1], 1)
        return faces.scatter(1, side[:, None], sign[:, None]) * stretch
    if CLASSES[label] == "cylinder":  # the lids are a third of it
        lid = w < 1 / 3
        radius = torch.where(lid, u.roll(1).sqrt(), 1.0)
        return torch.cat([ring * radius[:, None], torch.where(lid, height.sign(), height)[:, None]], 1) * stretch
    if CLASSES[label] == "cone":
        radius = v.sqrt()  # the further down, the wider
        return torch.cat([ring * radius[:, None], torch.where(w < 1 / 3, -1.0, 1 - 2 * radius)[:, None]], 1) * stretch
    tube = 0.35 * torch.stack([(2 * torch.pi * v).cos(), (2 * torch.pi * v).sin()], 1)
    return torch.cat([ring * (1 + tube[:, :1]), tube[:, 1:]], 1) * stretch
