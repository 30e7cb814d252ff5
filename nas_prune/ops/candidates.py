"""Candidates for the place of one convolution of a backbone: other kernels, separable, pooling, nothing at all.

Each keeps the shape of the output (odd kernels, padded by half their size). It ends in a BatchNorm2d of its own, so
that the candidates of a sum start at one scale, whatever they compute; the backbone's own norm follows the sum. Where
all are convolutions and inherit their scale, ``norm=False`` spares it. The operations are those of cell searches
(DARTS, arXiv 1806.09055); using them inside timm's blocks is ours.
``like`` leaves a depthwise convolution depthwise: where the channels are mixed, it is for the next layer to decide.
``inherit`` starts a convolution, separable or not, as near as it can come to the one that was trained in its place.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import gcd
from typing import Any, Self

import torch
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.ops.geometry import Geometry, made, same_geometry
from nas_prune.ops.nearest_kernel import in_groups, separated, with_taps
from nas_prune.ops.operation import Operation, operations


@operations.register("convolution")
class Convolution(Operation):
    """A convolution, then a BatchNorm2d. ``norm=False``: the bare convolution, with a bias where ``bias`` says so."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        bias: bool = False,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel": kernel, "stride": stride}
        super().__init__(**sizes, dilation=dilation, groups=groups, norm=norm, bias=bias)
        _odd(kernel)
        if in_channels % groups or out_channels % groups:
            raise SpaceError(f"{groups} groups do not divide {in_channels} and {out_channels} channels; choose another")
        padding = dilation * (kernel // 2)
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Options: ``kernel``, ``dilation``, ``groups``, ``norm``. The weights stay where none but ``norm`` changes."""
        known = same_geometry(module, cls)
        old = {name: getattr(known, name) for name in ("in_channels", "out_channels", "kernel", "stride")}
        old |= {"dilation": known.dilation, "groups": known.groups}
        bias = known.bias and not options.get("norm", True)
        operation = made(cls, {**old, "bias": bias, **options}, module)
        if all(operation.config[name] == value for name, value in old.items()):
            operation.convolution.load_state_dict(module.state_dict(), strict=bias or not known.bias)
        return operation

    @torch.no_grad()
    def inherit(self, other: Operation) -> None:
        """From a convolution: the nearest kernel of this size, dilation and grouping, its bias and its norm."""
        if isinstance(other, Convolution):
            self.convolution.weight.copy_(_nearest(other, self.config))
            if self.convolution.bias is not None:
                bias = other.convolution.bias
                self.convolution.bias.copy_(bias if bias is not None else torch.zeros_like(self.convolution.bias))
            _same_norm(self.norm, other.norm)

    def affine(self) -> tuple[Tensor, Tensor]:
        """What is done to each output of the kernel, as of now: its factor (o) and what is added (o)."""
        bias = self.convolution.bias
        ones = torch.ones_like(self.convolution.weight[:, 0, 0, 0])
        shift = torch.zeros_like(ones) if bias is None else bias
        if not isinstance(self.norm, nn.BatchNorm2d):
            return ones, shift
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return scale, self.norm.bias + (shift - mean) * scale

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.norm(self.convolution(x))
        return out


@operations.register("separable_convolution")
class SeparableConvolution(Operation):
    """Each channel filtered alone, then the channels mixed pixel by pixel, then a BatchNorm2d unless ``norm=False``."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        norm: bool = True,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel": kernel, "stride": stride}
        super().__init__(**sizes, dilation=dilation, norm=norm)
        _odd(kernel)
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel, stride, padding, dilation, in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Options: ``kernel``, ``dilation``, ``norm``."""
        known = same_geometry(module, cls)
        if known.depthwise:
            raise SpaceError(f"{module} is depthwise already; give it a convolution of another kernel")
        sizes = {"in_channels": known.in_channels, "out_channels": known.out_channels, "stride": known.stride}
        return made(cls, {**sizes, "kernel": known.kernel, "dilation": known.dilation, **options}, module)

    @torch.no_grad()
    def inherit(self, other: Operation) -> None:
        """From a convolution: the nearest separable kernel of this size and dilation, and its norm."""
        if isinstance(other, Convolution):
            depthwise, pointwise = separated(_nearest(other, {**self.config, "groups": 1}))
            self.depthwise.weight.copy_(depthwise)
            self.pointwise.weight.copy_(pointwise)
            _same_norm(self.norm, other.norm)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.norm(self.pointwise(self.depthwise(x)))
        return out


class Pool(Operation, ABC):
    """A pooled window, a 1x1 projection if the channels differ, a BatchNorm2d; a subclass says how it pools."""

    def __init__(
        self, *, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel": kernel, "stride": stride}
        super().__init__(**sizes, groups=groups)
        _odd(kernel)
        self.pool = self.window(kernel, stride)
        self.projection = _projection(in_channels, out_channels, groups)
        self.norm = nn.BatchNorm2d(out_channels)

    @staticmethod
    @abstractmethod
    def window(kernel: int, stride: int) -> nn.Module:
        """What pools, padded by half the kernel."""

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Option: ``kernel``."""
        return made(cls, {**_channels(same_geometry(module, cls)), **options}, module)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.norm(self.projection(self.pool(x)))
        return out


@operations.register("average_pool")
class AveragePool(Pool):
    """The average of a window; what lies outside does not count."""

    @staticmethod
    def window(kernel: int, stride: int) -> nn.Module:
        """An average over what lies inside."""
        return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)


@operations.register("max_pool")
class MaxPool(Pool):
    """The maximum of a window."""

    @staticmethod
    def window(kernel: int, stride: int) -> nn.Module:
        """A maximum."""
        return nn.MaxPool2d(kernel, stride, kernel // 2)


@operations.register("skip_connection")
class SkipConnection(Operation):
    """x itself where stride and channels allow it, otherwise a (strided) 1x1 convolution of it; then a BatchNorm2d."""

    def __init__(self, *, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, stride=stride, groups=groups)
        self.projection = _projection(in_channels, out_channels, groups, stride)
        self.norm = nn.BatchNorm2d(out_channels)

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """Has no options."""
        return made(cls, {**_channels(same_geometry(module, cls)), **options}, module)

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.norm(self.projection(x))
        return out


def _channels(known: Geometry) -> dict[str, int]:
    """Channels, stride and groups of a convolution."""
    sizes = {"in_channels": known.in_channels, "out_channels": known.out_channels}
    return {**sizes, "stride": known.stride, "groups": known.groups}


def _projection(in_channels: int, out_channels: int, groups: int, stride: int = 1) -> nn.Module:
    """A 1x1 convolution, or nothing where nothing has to change."""
    if gcd(in_channels, out_channels) % groups:
        raise SpaceError(f"{groups} groups do not divide {in_channels} and {out_channels} channels; choose another")
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def _nearest(other: Convolution, config: Mapping[str, Any]) -> Tensor:
    """The weight nearest to another one's that this kernel, dilation and grouping allow."""
    weight = with_taps(other.convolution.weight, other.config["dilation"], config["kernel"], config["dilation"])
    return in_groups(weight, other.config["groups"], config["groups"])


def _same_norm(norm: nn.Module, other: nn.Module) -> None:
    """Scale, shift and statistics of another BatchNorm2d."""
    if isinstance(norm, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d):
        norm.load_state_dict(other.state_dict())


def _odd(kernel: int) -> None:
    if kernel % 2 != 1:
        raise SpaceError(f"a kernel of {kernel} cannot be padded evenly; choose an odd one")
