"""Structured sparse convolution: fixed zeros in the kernel, executed as small dense kernels.

After Verma, Mehta, Si, Henao, Carin, "Pushing the Efficiency Limit Using Structured Sparse Convolutions" (WACV 2023,
arXiv 2210.12818): sparse by construction, trained from scratch; depthwise, groupwise and pointwise convolutions are
special cases. The exact pattern of the paper is not public; this one is ours. With g groups and q supports,

    W_eff[o] = W[o] * M[o],   M[o, c, u, v] = 1 iff group(c) = group(o) and (u, v) in support[o mod q]

The outputs come class by class (all of o mod q = 0, then 1, ...), and that is the order of the operation's output:
channels of a layer that is trained from scratch have no order of their own, and putting them back would cost a copy of
the output for nothing. ``order()`` is the permutation: output p is output order()[p] of the convolution with W * M.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.ops.geometry import geometry, made
from nas_prune.ops.operation import Operation, operations
from nas_prune.ops.sparse_supports import TapGrid, Taps, grids, taps


@operations.register("structured_sparse_convolution")
class StructuredSparseConvolution(Operation):
    """A k x k convolution of which only some taps live, the same for every q-th output. No norm of its own."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        supports: Sequence[str | Sequence[Sequence[int]]] = ("full",),
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel": kernel, "groups": groups}
        plain = [each if isinstance(each, str) else [list(tap) for tap in each] for each in supports]
        super().__init__(**sizes, supports=plain, stride=stride, padding=padding, bias=bias)
        classes = [taps(support, kernel) for support in supports]
        if not classes or in_channels % groups or out_channels % (groups * len(classes)):
            raise SpaceError(
                f"{in_channels} inputs and {out_channels} outputs in {groups} groups with {len(classes)} supports: "
                "the groups must divide the inputs, groups times supports (at least one) the outputs"
            )
        self.classes = nn.ModuleList(self._class(living) for living in classes)

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Options: ``groups``, ``supports``. The weights are new."""
        known = geometry(module, cls)
        if known.dilation != 1:
            raise SpaceError(f"a {cls.__name__} has no dilation; {module} has")
        names = ("in_channels", "out_channels", "kernel", "stride", "padding", "groups", "bias")
        return made(cls, {**{name: getattr(known, name) for name in names}, **options}, module)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b (q o) h w): the convolution with W * M, its outputs in the order ``order()``."""
        return torch.cat([one(x) for one in self.classes], 1)

    def order(self) -> Tensor:
        """(o): for each output the one of the convolution with W * M that it is."""
        return rearrange(torch.arange(self.config["out_channels"]), "(o q) -> (q o)", q=len(self.config["supports"]))

    def mask(self) -> Tensor:
        """M (o i k k), in the order of the convolution with W * M."""
        config = self.config
        group = torch.eye(config["groups"]).repeat_interleave(config["out_channels"] // config["groups"], 0)
        group = group.repeat_interleave(config["in_channels"] // config["groups"], 1)
        space = torch.zeros(len(self.classes), config["kernel"], config["kernel"])
        for number, support in enumerate(config["supports"]):
            for row, column in taps(support, config["kernel"]):
                space[number, row, column] = 1
        space = space.repeat(config["out_channels"] // len(self.classes), 1, 1)
        return rearrange(group, "o i -> o i 1 1") * rearrange(space, "o u v -> o 1 u v")

    def _class(self, living: Taps) -> "_Class":
        """The outputs of one support, initialised for as many inputs as they really have (He et al. 2015)."""
        parts = grids(living)
        layers = [self._part(grid, bias=self.config["bias"] and number == 0) for number, grid in enumerate(parts)]
        fan_in = self.config["in_channels"] // self.config["groups"] * len(living)
        for layer in layers:
            nn.init.normal_(layer.get_parameter(f"{len(layer) - 1}.weight"), std=(2 / fan_in) ** 0.5)
        return _Class(layers)

    def _part(self, grid: TapGrid, bias: bool) -> nn.Sequential:
        """One small dense kernel, its input padded or cropped as if it were the k x k one."""
        config = self.config
        edges = [(config["padding"] - run[0], config["padding"] + run[-1] - config["kernel"] + 1) for run in grid]
        own = all(before == after >= 0 for before, after in edges)
        convolution = nn.Conv2d(
            config["in_channels"],
            config["out_channels"] // len(config["supports"]),
            (len(grid[0]), len(grid[1])),
            config["stride"],
            (edges[0][0], edges[1][0]) if own else 0,
            (grid[0].step, grid[1].step),
            config["groups"],
            bias,
        )
        return nn.Sequential(convolution) if own else nn.Sequential(nn.ZeroPad2d((*edges[1], *edges[0])), convolution)


class _Class(nn.ModuleList):
    """The outputs of one support: the sum of its small kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h w)."""
        first, *others = self
        total: Tensor = first(x)
        for other in others:
            total = total + other(x)
        return total
