"""Structured convolution: a kernel that is a sum of shifted boxes, computed as a sum-pooling and a smaller convolution.

Bhalgat, Zhang, Lin, Porikli, "Structured Convolutions for Efficient Neural Network Design" (NeurIPS 2020, arXiv
2008.02454). A C x N x N kernel is structured with (c, n) if it is a sum of the c n^2 placements of an all-ones box of
size (C-c+1) x (N-n+1) x (N-n+1), with weights alpha (c n n). Then

    conv(x, W) = conv(sumpool(pad(x)), alpha)

for every stride and zero padding, the padding before the pooling. Multiply-adds shrink by c n^2 / (C N^2); the
additions of the pooling are shared by all outputs. The matrix A of the placements is a Kronecker product of three
banded matrices (ours), so A and its projector are only ever applied factor by factor.

Channel windows (c < C) assume that neighbouring channels belong together, and freeze the channels that they slide
over; their running sums want float32 or better. c = C, the default, pools space only, and leaves every channel
prunable.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from einops import einsum
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.ops.candidates import Convolution
from nas_prune.ops.geometry import geometry, made
from nas_prune.ops.operation import Operation, operations


@operations.register("structured_convolution")
class StructuredConvolution(Operation):
    """Zero padding, a sum over windows of pixels (and of channels), a small convolution. No norm of its own.

    ``channels``, ``kernel``: c and n; ``window``: N - n + 1. How many channels come in is read off the input.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        kernel: int = 2,
        window: int = 2,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        sizes = {"channels": channels, "out_channels": out_channels, "kernel": kernel, "window": window}
        super().__init__(**sizes, stride=stride, padding=padding, groups=groups, bias=bias)
        if min(kernel, window) < 1 or channels % groups or out_channels % groups:
            raise SpaceError(
                f"{sizes}: kernel and window start at 1, and {groups} groups must divide the channels; choose others"
            )
        self.pool = nn.Identity() if window == 1 else _SumPool(window, padding)
        inside = padding if window == 1 else 0
        self.convolution = nn.Conv2d(channels, out_channels, kernel, stride, inside, groups=groups, bias=bias)

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Options: ``kernel`` (n) and ``channels`` (c), as large as those of the convolution if left out.

        Its weights are the nearest structured ones: alpha = A^+ W.
        """
        sizes: Mapping[str, int] = options
        if not sizes.keys() <= {"kernel", "channels"} or not all(isinstance(size, int) for size in sizes.values()):
            raise SpaceError(f"a {cls.__name__} has the options kernel and channels, whole numbers; got {options}")
        return cls.from_convolution(module, **sizes)

    @classmethod
    def from_convolution(cls, module: nn.Module, *, kernel: int | None = None, channels: int | None = None) -> Self:
        """The structured convolution nearest to a convolution; the same function where its kernel is structured."""
        known = geometry(module, cls)
        kernel, channels = kernel or known.kernel, channels or known.in_channels
        whole = channels == known.in_channels
        if (
            known.dilation != 1
            or kernel > known.kernel
            or not (whole or (channels < known.in_channels and known.groups == 1))
        ):
            raise SpaceError(
                f"kernel {kernel} and channels {channels} do not fit {module}: smaller ones, and no dilation"
            )
        sizes = {"channels": channels, "out_channels": known.out_channels, "kernel": kernel}
        around = {"window": known.kernel - kernel + 1, "stride": known.stride, "padding": known.padding}
        operation = made(cls, {**sizes, **around, "groups": known.groups, "bias": known.bias}, module)
        weight = module.get_parameter("weight").detach()
        alpha = coefficients(weight, kernel, channels // known.groups)
        operation.convolution.load_state_dict({**module.state_dict(), "weight": alpha})
        return operation

    @torch.no_grad()
    def inherit(self, other: Operation) -> None:
        """From a convolution of this kernel and grouping: alpha = A^+ W, with what its norm multiplies and adds."""
        size = self.convolution.kernel_size[0] + self.config["window"] - 1
        known = {"kernel": size, "dilation": 1, "groups": self.config["groups"]}
        if not isinstance(other, Convolution) or any(other.config[name] != value for name, value in known.items()):
            return
        scale, shift = other.affine()
        weight = other.convolution.weight * scale[:, None, None, None]
        alpha = coefficients(weight, self.config["kernel"], self.convolution.in_channels // self.config["groups"])
        self.convolution.weight.copy_(alpha)
        if self.convolution.bias is not None:
            self.convolution.bias.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h w)."""
        x = self.pool(x)
        out: Tensor = self.convolution(channel_sums(x, x.shape[1] - self.convolution.in_channels + 1))
        return out


class _SumPool(nn.Module):
    """Zero padding, then sums over windows of pixels: rows, then columns, as few additions of whole images."""

    def __init__(self, window: int, padding: int) -> None:
        super().__init__()
        self.kernel_size, self.padding = window, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b i h+2p-window+1 w+2p-window+1)."""
        x = nn.functional.pad(x, (self.padding,) * 4) if self.padding else x
        height, width = (size - self.kernel_size + 1 for size in x.shape[2:])
        first, *others = range(self.kernel_size)
        rows = x[:, :, first : first + height]
        for start in others:
            rows = rows + x[:, :, start : start + height]
        sums = rows[..., first : first + width]
        for start in others:
            sums = sums + rows[..., start : start + width]
        return sums


def channel_sums(x: Tensor, window: int) -> Tensor:
    """x (b i h w) -> (b i-window+1 h w): sums over windows of neighbouring channels, as differences of running sums."""
    if window == 1:
        return x
    running = nn.functional.pad(x.cumsum(1), (0, 0, 0, 0, 1, 0))
    return running[:, window:] - running[:, :-window]


def placements(whole: int, part: int) -> Tensor:
    """(whole part), float64: column m has ones in rows m to m + whole - part. One factor of the matrix A."""
    ones = torch.ones(whole, part, dtype=torch.float64)
    return ones.tril() - ones.tril(part - whole - 1)


def coefficients(weight: Tensor, kernel: int, channels: int) -> Tensor:
    """alpha = A^+ W: weight (o i k k) -> (o c n n), the structured kernel nearest to a weight."""
    i, u, v = (torch.linalg.pinv(placements(*each)).to(weight) for each in _factors(weight, kernel, channels))
    alpha: Tensor = einsum(weight, i, u, v, "o i u v, c i, n u, m v -> o c n m")
    return alpha


def bases(weight: Tensor, kernel: int, channels: int) -> list[Tensor]:
    """Orthonormal (i c), (k n) and (k n), whose product spans the structured kernels: the thin QR of A, by factors."""
    return [torch.linalg.qr(placements(*each)).Q.to(weight) for each in _factors(weight, kernel, channels)]


def unstructured(weight: Tensor, spans: list[Tensor]) -> Tensor:
    """(I - Q) W of a weight (o i k k): what no structured kernel of these ``bases`` can say."""
    i, u, v = spans
    inside = einsum(weight, i, u, v, "o i u v, i c, u n, v m -> o c n m")
    return weight - einsum(inside, i, u, v, "o c n m, i c, u n, v m -> o i u v")


def _factors(weight: Tensor, kernel: int, channels: int) -> list[tuple[int, int]]:
    """(whole, part) of channels, rows and columns."""
    return [(weight.shape[1], channels), (weight.shape[2], kernel), (weight.shape[3], kernel)]
