"""Filters: where a model computes the units of an axis, that is, what the first convolution or linear layer says that
writes the axis, before norm and activation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.graph.hooks import outputs_of


@dataclass(frozen=True)
class Filters:
    """``path`` of the layer; along ``dim`` of its output are the units, those of ``rows`` in this order, ``size`` of
    them with ``each`` rows."""

    path: str
    dim: int
    rows: Tensor | None
    size: int
    each: int

    def of(self, output: Tensor) -> Tensor:
        """What the units say (b c n) in an output (b ...)."""
        moved = output.movedim(self.dim, 1)
        moved = moved if self.rows is None else moved[:, self.rows.to(moved.device)]
        return moved.reshape(len(moved), self.size, -1)


def filters(gated: GatedModel) -> dict[str, Filters]:
    """Axis -> where its units are computed, for the free axes that a convolution or a linear layer writes."""
    found: dict[str, Filters] = {}
    for name, written in gated.writers.items():
        for tensor, dim, order in written[:1]:
            path = tensor.removesuffix(".weight")
            layer = gated.backbone.get_submodule(path) if path != tensor else None
            if isinstance(layer, nn.Conv2d | nn.Linear) and dim == 0:
                along, size = 1 if isinstance(layer, nn.Conv2d) else -1, gated.axes[name].size
                count = len(layer.weight) if order is None else len(order)
                found[name] = Filters(path, along, order, size, count // size)
    return found


@contextmanager
def hearing(model: nn.Module, path: str, hear: Callable[[Tensor], None]) -> Iterator[None]:
    """In the block, ``hear`` is called with what the module at ``path`` says, and what comes next gets a copy: it may
    write into it."""

    def after(_: str, output: Tensor) -> Tensor:
        hear(output)
        return output.clone()

    with outputs_of({path: model.get_submodule(path)}, after):
        yield
