"""Operations: modules of ours that take the place of a model's own. Each is built again from plain data.

An artefact cannot hold code. So a module that was put into a timm model is recorded by its registered name and by the
keyword arguments that built it; ``operations[name](**config)`` is the same module again, at the sizes it had before
pruning.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.base.registry import Registry

operations: Registry[type["Operation"]] = Registry("operation", __package__)


class Operation(nn.Module):
    """A module that can take another one's place. Subclasses hand their keyword arguments to ``super().__init__``."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self._config = config

    @property
    def config(self) -> Mapping[str, Any]:
        """The keyword arguments that build it again, plain JSON values."""
        return self._config

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """One that can stand where ``module`` stands. Raises SpaceError where it cannot."""
        raise SpaceError(
            f"a {cls.__name__} cannot take the place of a {type(module).__name__} ({options or 'as it is'})"
        )

    def inherit(self, other: "Operation") -> None:
        """Take over in place what can be of the weights of another operation that stands in the same place."""


def name_of(kind: type) -> str | None:
    """The registered name of a class of operations, None for any other class."""
    return next((name for name, known in operations.items() if known is kind), None)


@operations.register("skip")
class Skip(Operation):
    """What is left of a block whose branches are all closed: its first argument."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x, whatever else the block was called with."""
        return x


@operations.register("zero")
class Zero(Operation):
    """What is left of the last module of a closed branch: zeros like its first argument.

    ``channels``, ``stride``: what an operation of a cell is told; the zeros are those of every ``stride``-th pixel.
    """

    def __init__(self, *, channels: int | None = None, stride: int | None = None) -> None:
        told = {"channels": channels, "stride": stride}
        super().__init__(**{name: value for name, value in told.items() if value is not None})

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Zeros of the shape of x, whatever else the module was called with."""
        step = self.config.get("stride", 1)
        return torch.zeros_like(x if step == 1 else x[:, :, ::step, ::step])
