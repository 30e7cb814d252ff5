"""The operations of cell search spaces: DARTS (arXiv 1806.09055) and NAS-Bench-201 (arXiv 2001.00326), without none.

    DARTS                        sep_conv_3x3, sep_conv_5x5  cell_separable, kernel 3 or 5, repeats 2
                                 dil_conv_3x3, dil_conv_5x5  cell_separable, kernel 3 or 5, dilation 2
                                 max_pool_3x3, avg_pool_3x3  cell_pool, kind max or average
                                 skip_connect                cell_skip
    NAS-Bench-201                nor_conv_1x1, nor_conv_3x3  cell_convolution, kernel 1 or 3
                                 avg_pool_3x3, skip_connect  cell_pool (norm: false), cell_skip

The order is ReLU, convolution, BatchNorm. ``affine: false`` leaves the BatchNorms without scale and shift, as both
papers do while they search. Where an odd image is halved, ours rounds up like every other operation here.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from nas_prune.ops.operation import Operation, operations


@operations.register("cell_convolution")
class CellConvolution(Operation):
    """ReLU, convolution, BatchNorm2d."""

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        kernel: int = 3,
        stride: int = 1,
        affine: bool = True,
    ) -> None:
        sizes = {"channels": channels, "out_channels": out_channels, "kernel": kernel, "stride": stride}
        super().__init__(**sizes, affine=affine)
        out = channels if out_channels is None else out_channels
        self.convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.norm(self.convolution(x.relu()))
        return out


@operations.register("cell_separable")
class CellSeparable(Operation):
    """ReLU, depthwise, pointwise, BatchNorm2d; as often as ``repeats`` says, the stride in the first."""

    def __init__(
        self,
        *,
        channels: int,
        stride: int = 1,
        kernel: int = 3,
        dilation: int = 1,
        repeats: int = 1,
        affine: bool = True,
    ) -> None:
        sizes = {"channels": channels, "stride": stride, "kernel": kernel, "dilation": dilation, "repeats": repeats}
        super().__init__(**sizes, affine=affine)
        padding = dilation * (kernel // 2)
        steps: list[nn.Module] = []
        for step in (stride, *[1] * (repeats - 1)):
            depthwise = nn.Conv2d(channels, channels, kernel, step, padding, dilation, channels, bias=False)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            steps += [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine)]
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) -> (b c h/stride w/stride)."""
        out: Tensor = self.steps(x)
        return out


@operations.register("cell_pool")
class CellPool(Operation):
    """A 3x3 pooling, what lies outside not counted; ``norm``: then a BatchNorm2d, as DARTS has while it searches."""

    def __init__(
        self,
        *,
        channels: int,
        stride: int = 1,
        kind: Literal["max", "average"] = "max",
        norm: bool = True,
        affine: bool = False,
    ) -> None:
        super().__init__(channels=channels, stride=stride, kind=kind, norm=norm, affine=affine)
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.pool = nn.MaxPool2d(3, stride, 1) if kind == "max" else average
        self.norm = nn.BatchNorm2d(channels, affine=affine) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) -> (b c h/stride w/stride)."""
        out: Tensor = self.norm(self.pool(x))
        return out


@operations.register("cell_skip")
class CellSkip(Operation):
    """x itself, or its factorized reduction: ReLU, half of the channels from the even pixels, half from the odd."""

    def __init__(self, *, channels: int, stride: int = 1, out_channels: int | None = None, affine: bool = True) -> None:
        super().__init__(channels=channels, stride=stride, out_channels=out_channels, affine=affine)
        out = channels if out_channels is None else out_channels
        self.reduction = None if (stride, out) == (1, channels) else _Reduction(channels, out, stride, affine)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        return x if self.reduction is None else self.reduction(x)


class _Reduction(nn.Module):
    """Two 1x1 convolutions with a stride, the second one pixel further down and right; then a BatchNorm2d."""

    def __init__(self, channels: int, out_channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(channels, half, 1, stride, bias=False)
        self.shift = nn.ZeroPad2d((-1, 1, -1, 1))
        self.odd = nn.Conv2d(channels, out_channels - half, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        x = x.relu()
        out: Tensor = self.norm(torch.cat([self.even(x), self.odd(self.shift(x))], 1))
        return out
