"""A convolution of which only some stripes live: what a Filter Skeleton leaves of it (arXiv 2009.14410).

The same function in several forms; which one is fastest depends on the layer, on how much lives and on the runtime, and
so is measured (``stripe_timing``). Few multiply-adds do not mean few milliseconds: at half of the stripes the ordinary
convolution is often still the fastest.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.base.registry import hint
from nas_prune.ops.operation import Operation, operations
from nas_prune.ops.stripes.forms import forms
from nas_prune.ops.stripes.parts import Collect, Window
from nas_prune.ops.stripes.plan import Pair, StripePlan


@operations.register("stripe_conv")
class StripeConv(Operation):
    """A convolution whose dead stripes are zero and stay zero. Zeros until a state is loaded; made by ``of``.

    ``alive``: per filter the positions of its kernel row by row, "1" live and "0" dead ("111010000" for 3x3).
    ``padding``: top, bottom, left, right; the other pairs are height, width. ``form``: how it computes.
    """

    alive: Tensor

    def __init__(
        self,
        *,
        alive: Sequence[str],
        in_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        bias: bool,
        form: str,
    ) -> None:
        config = {"alive": list(alive), "in_channels": in_channels, "bias": bias, "form": form}
        pairs = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        super().__init__(**config, **{name: list(values) for name, values in pairs.items()})
        if form not in forms:
            raise SpaceError(f"unknown form of a stripe convolution: {form!r}{hint(form, forms)}")
        height, width = kernel_size
        plan = StripePlan(
            alive, in_channels, (height, width), _pair(stride), _pair(dilation), cast(Any, tuple(padding))
        )
        pattern = torch.tensor([[mark == "1" for mark in marks] for marks in alive])
        self.register_buffer("alive", rearrange(pattern, "n (i j) -> n i j", i=height))
        self.parts = nn.ModuleList(forms[form if any("1" in marks for marks in alive) else "cropped"](plan))
        owners = [owner for part in self.parts for owner in cast(Any, part).owners]
        self.collect = None if owners == list(range(len(alive))) else Collect(owners, len(alive))
        self.bias = nn.Parameter(torch.zeros(len(alive))) if bias else None

    @classmethod
    def of(cls, conv: nn.Conv2d, alive: Tensor, form: str = "dense") -> Self:
        """The convolution with only the stripes ``alive`` (n i j), bool, of its weight; a copy, as exact as it was.

        Raises SpaceError for a convolution that has no stripes, or others.
        """
        _refuse(conv, alive)
        made = cls(
            alive=["".join("01"[live] for live in marks) for marks in alive.flatten(1).tolist()],
            in_channels=conv.in_channels,
            kernel_size=conv.kernel_size,
            stride=conv.stride,
            padding=_padding(conv),
            dilation=conv.dilation,
            bias=conv.bias is not None,
            form=form,
        )
        return made._filled(conv.weight, conv.bias, training=conv.training)

    def reformed(self, form: str) -> Self:
        """The same function in another form. Raises SpaceError unless this one is of the form dense."""
        if self.config["form"] != "dense":
            raise SpaceError(f"only a dense stripe convolution can take another form, not a {self.config['form']} one")
        made = type(self)(**{**self.config, "form": form})
        return made._filled(cast(Any, self.parts[0]).weight, self.bias, training=self.training)

    @torch.no_grad()
    def _filled(self, weight: Tensor, bias: Tensor | None, *, training: bool) -> Self:
        """This one with the live stripes of a weight (n c i j) and a bias (n)."""
        self.to(weight.device, weight.dtype).train(training)
        for part in cast(Any, self.parts):
            part.weight.copy_(part.taken(weight)).requires_grad_(weight.requires_grad)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias).requires_grad_(bias.requires_grad)
        return self

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """One with all stripes alive where ``module`` stands; ``options``: form."""
        if not isinstance(module, nn.Conv2d):
            raise SpaceError(f"a {type(module).__name__} has no stripes; only a convolution of two dimensions does")
        return cls.of(module, module.weight.new_ones(_stripes(module), dtype=torch.bool), **options)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b n h w)."""
        if len(self.parts) == 1 and self.collect is None and isinstance(self.parts[0], Window):
            return cast(Tensor, self.parts[0](x, self.bias))
        maps = [part(x) for part in self.parts]
        out: Tensor = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        out = out if self.collect is None else self.collect(out)
        return out if self.bias is None else out + rearrange(self.bias, "n -> n 1 1")

    def extra_repr(self) -> str:
        """Form and live share."""
        live = sum(marks.count("1") for marks in self.config["alive"])
        return f"{self.config['form']}, {live} of {self.alive.numel()} stripes live"


def stripe_macs(conv: nn.Conv2d, alive: Tensor, shape: Sequence[int]) -> int:
    """Multiply-adds of the stripes ``alive`` (n i j) for an input of ``shape`` (b c h w): what live stripes need,
    whatever a form computes besides."""
    _refuse(conv, alive)
    pairs = (_pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation))
    outputs = StripePlan([], conv.in_channels, *pairs, _padding(conv)).outputs(shape[2], shape[3])
    return int(alive.sum()) * conv.in_channels * shape[0] * prod(outputs)


def _refuse(conv: nn.Conv2d, alive: Tensor) -> None:
    plain = isinstance(conv, nn.Conv2d) and type(conv).forward is nn.Conv2d.forward
    if not plain or conv.groups != 1 or conv.padding_mode != "zeros":
        raise SpaceError(
            f"{conv} has no stripes: only a plain nn.Conv2d with groups=1 and padding_mode='zeros' has. "
            "Leave it out of the stripes of the search space"
        )
    if alive.dtype != torch.bool or tuple(alive.shape) != _stripes(conv):
        raise SpaceError(
            f"the stripes of {conv} are a bool tensor of shape {_stripes(conv)} (filter, row, column); "
            f"this one is {alive.dtype} of shape {tuple(alive.shape)}"
        )


def _stripes(conv: nn.Conv2d) -> tuple[int, ...]:
    return (conv.weight.shape[0], *conv.weight.shape[2:])


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Top, bottom, left, right: what torch does for a name or a number."""
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2
    y, x = (0, 0) if isinstance(conv.padding, str) else _pair(conv.padding)
    return y, y, x, x


def _pair(values: Sequence[int]) -> Pair:
    height, width = values
    return height, width
