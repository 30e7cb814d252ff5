"""The geometry of a convolution: what an operation has to know to stand in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from nas_prune.base.errors import SpaceError
from nas_prune.ops.operation import Operation

OperationKind = TypeVar("OperationKind", bound=Operation)


@dataclass(frozen=True)
class Geometry:
    """A convolution with a square kernel, padded with zeros by the same amount on all four sides."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: int
    bias: bool

    @property
    def depthwise(self) -> bool:
        """Whether every channel is filtered alone."""
        return self.groups == self.in_channels == self.out_channels > 1

    @property
    def same(self) -> bool:
        """Whether every other odd kernel, padded by half its size, gives an output of the same shape."""
        return self.kernel % 2 == 1 and self.padding == self.dilation * (self.kernel // 2)


def geometry(module: nn.Module, kind: type[Operation]) -> Geometry:
    """The geometry of the convolution that a ``kind`` is to replace. Raises SpaceError where it is of no such form."""
    if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
        raise SpaceError(f"a {kind.__name__} takes the place of a plain nn.Conv2d, not of a {type(module).__name__}")
    kernel, stride, dilation = (_one(module, name) for name in ("kernel_size", "stride", "dilation"))
    padding = 0 if module.padding == "valid" else _one(module, "padding") if module.padding != "same" else None
    if padding is None and (stride, dilation * (kernel - 1) % 2) == (1, 0):
        padding = dilation * (kernel - 1) // 2
    if padding is None or module.padding_mode != "zeros":
        raise SpaceError(f"a {kind.__name__} needs equal zero padding on all sides; {module} has another")
    widths = module.in_channels, module.out_channels
    return Geometry(*widths, kernel, stride, padding, dilation, module.groups, module.bias is not None)


def same_geometry(module: nn.Module, kind: type[Operation]) -> Geometry:
    """The geometry of a convolution whose kernel may become another odd one. Raises SpaceError for any other."""
    known = geometry(module, kind)
    if not known.same:
        raise SpaceError(f"a {kind.__name__} pads an odd kernel by half its size; {module} does not")
    return known


def made(kind: type[OperationKind], config: Mapping[str, Any], like: nn.Module | None = None) -> OperationKind:
    """An operation from its keyword arguments, where and as precise as ``like`` is.

    Raises SpaceError where they do not fit.
    """
    try:
        operation = kind(**config)
    except TypeError as error:
        raise SpaceError(f"{dict(config)} does not describe a {kind.__name__}: {error}") from None
    if like is None:
        return operation
    return operation.to(next(like.parameters())).train(like.training)


def _one(module: nn.Conv2d, name: str) -> int:
    """The one number of a pair that is equal in both directions."""
    first, second = getattr(module, name)
    if first != second:
        raise SpaceError(f"only square convolutions can be replaced; {module} has {name} {(first, second)}")
    return int(first)
