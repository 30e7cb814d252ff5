"""What a cost model is: expected sizes of the axes -> parameters, MACs or milliseconds, differentiable."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nas_prune.base.registry import Registry

Sizes = Mapping[str, Tensor | float]


class CostModel(Protocol):
    """Called with the size of every axis, integer or real; an axis left out is dense. ``unit`` names what comes out."""

    unit: str

    def __call__(self, sizes: Sizes) -> Tensor:
        """The cost, a scalar tensor."""
        ...


costs: Registry[type] = Registry("cost", __package__)
