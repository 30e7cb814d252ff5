"""The average of a model over its steps of training: weights are averaged, states are not.

Half a weight is a weight. A state (a unit that is closed for good, a threshold, a count of what was seen) has no half:
the average has those of the model as it is. Weights are all parameters, the running statistics of norms, and those
buffers of gates that these call ``averaged``; all other buffers are states.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from nas_prune.methods.gates import Gate

STATISTICS = ("running_mean", "running_var")


class Average(ModelEmaV3):  # type: ignore[misc]
    """An exponential moving average of a model; ``module`` is a copy of that, in eval mode."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """After a step: go a share ``1 - decay`` of the way to the model's weights, and take its states."""
        super().update(model, step)
        self.follow(model)

    @torch.no_grad()
    def take(self, model: nn.Module, before: Mapping[str, Tensor]) -> None:
        """Take what has been set in the model since its tensors were ``before``, and its states."""
        mine = dict(_tensors(self.module))
        for name, value in _tensors(model):
            mine[name].copy_(value.where(value != before[name], mine[name]))
        self.follow(model)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take the states of the model."""
        for mine, state in zip(_states(self.module), _states(model), strict=True):
            mine.copy_(state)


@contextmanager
def set_alike(model: nn.Module, average: Average | None) -> Iterator[None]:
    """In the block, numbers of the model are set, and not learnt in steps: they are the same in its average."""
    before = {} if average is None else {name: value.clone() for name, value in _tensors(model)}
    yield
    if average is not None:
        average.take(model, before)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of all parameters and buffers."""
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())
    yield from model.named_buffers()


def _states(model: nn.Module) -> Iterator[Tensor]:
    """Buffers that cannot be averaged."""
    for module in model.modules():
        averaged = module.averaged if isinstance(module, Gate) else STATISTICS
        yield from (value for name, value in module.named_buffers(recurse=False) if name not in averaged)
