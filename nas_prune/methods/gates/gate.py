"""What a gate is: one keep value per unit of an axis, computed from the weights that write the axis."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nas_prune.base.axis import Kind
from nas_prune.base.registry import Registry

gates: Registry[type[Gate]] = Registry("gate", __package__)


class Gate(nn.Module, ABC):
    """A gate of one axis.

    ``size``: units of the axis. ``fan_in``: numbers per unit in each weight that writes the axis.
    A method is a subclass that says how scores come about (``score``) and how they open and close units (``open``).
    ``of_stripes``: it reads, in place of weights, what the gates of the stripes say that its units consist of.
    ``site``: where it acts while it learns: at every reader of the axis, or on what its writers write, before anything
    is added. ``looks``: its keep values (b c) are those of each image, made of what the first writer of the axis reads;
    before anything else it is told how many channels that has (``face``).
    ``averaged``: buffers that go with its weights, and are averaged where these are; all others are states.
    Whatever a gate does, a chosen architecture is closed where axes are read.
    """

    of_stripes = False
    site: ClassVar[Literal["read", "write"]] = "read"
    looks: ClassVar[bool] = False
    averaged: ClassVar[tuple[str, ...]] = ()

    def __init__(self, size: int, fan_in: Sequence[int]) -> None:
        super().__init__()
        self.size = size
        self.fan_in = tuple(fan_in)

    @classmethod
    def on(cls, kind: Kind, size: int, fan_in: Sequence[int], *, striped: bool, **options: Any) -> Gate:  # noqa: ARG003
        """The gate of an axis of this kind; ``striped``: its units consist of stripes that have gates of their own."""
        return cls(size, fan_in, **options)

    @abstractmethod
    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """Scores (c) from the weights [(c n_i), ...] that write the axis; a unit is open where it is >= 0."""

    @abstractmethod
    def open(self, score: Tensor) -> Tensor:
        """Keep values (c) in [0, 1] for scores (c)."""

    def face(self, channels: int) -> None:
        """What the first writer of the axis reads has so many channels; told to gates that look."""

    def forward(self, weight: Sequence[Tensor], x: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Keep values (c), or (b c) of a gate that looks at x (b ... i), what the first writer of the axis reads."""
        return self.open(self.score(weight))

    def advance(self, share: float) -> None:
        """This share of the joint training has passed; told before every step of it."""

    def charged(self, keep: Tensor) -> Tensor:
        """What a budget is charged (c), in units, for those of which ``keep`` (c) was left in a forward pass; of a gate
        that looks, (b c) both."""
        return keep

    def fold(self, weight: Tensor) -> Tensor:
        """The weight (n c i j) with what this gate of its stripes multiplies onto it; from then on it is 1 or 0."""
        return weight

    def scaled(self, factor: Tensor) -> None:
        """What it looks at is divided by these factors (i) from now on."""

    def handed_over(self) -> Tensor | None:
        """What of its keep values (c) the weights that read the axis take over, once and for all; None: nothing."""
        return None

    def narrowed(self, units: Tensor, columns: Sequence[Tensor | None]) -> Gate:
        """This gate for the units (c') that stay of its axis, and the numbers (n_i) of its weights; None: a weight that
        went.

        What it has per unit (the first dimension) goes with the unit; a gate that has something per number says how.
        """
        small = copy.deepcopy(self)
        small.size, small.fan_in = len(units), tuple(len(each) for each in columns if each is not None)
        for name, value in [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]:
            if value.shape[:1] == (self.size,):
                left = value.detach()[units]
                setattr(small, name, nn.Parameter(left) if isinstance(value, nn.Parameter) else left)
        return small

    def go_on(self, before: Tensor, now: Tensor) -> None:
        """Other units were removed, and the scores (c) are ``now`` what they were ``before``, or have to become it."""

    def mix(self, x: Tensor, keep: Tensor) -> Tensor:
        """How a keep value acts on what it gates; both broadcast against each other."""
        return x * keep

    @property
    def multiplies(self) -> bool:
        """Whether what it does is a product, which may as well be made with the weight that reads."""
        return type(self).mix is Gate.mix


class HardStep(torch.autograd.Function):
    """1 where the score is >= 0; backwards the triangle max(0, 1 - |z|), and ``leak`` everywhere on top (ours).

    The triangle is the derivative of Bi-Real Net's piecewise polynomial (arXiv 1808.00278, eq. 7), mapped to {0, 1}.
    """

    @staticmethod
    def forward(ctx: Any, score: Tensor, leak: float = 0.0) -> Tensor:
        """Open (1) or closed (0), same shape as the scores."""
        ctx.save_for_backward(score)
        ctx.leak = leak
        return (score >= 0).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient through the triangle."""
        (score,) = ctx.saved_tensors
        return gradient * ((1 - score.abs()).clamp(min=0) + ctx.leak), None
