"""One step of training: the forward pass as a recipe wants it computed, and the step of every optimizer.

Accelerate changes the ``forward`` of what it prepares for good, so that it computes in mixed precision. So it is given
a shell: the model inside, and all that is derived from it, timed and saved, computes as it did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Pace:
    """What makes steps faster, and changes numbers by rounding alone.

    ``compile``: by torch.compile. ``channels_last``: images and weights (b c h w) lie in memory as (b h w c).
    """

    compile: bool = False
    channels_last: bool = False


class _Shell(nn.Module):
    """A model while it trains; it shares the parameters."""

    def __init__(self, model: nn.Module, pace: Pace) -> None:
        super().__init__()
        self.model = torch.compile(model) if pace.compile else model
        self.channels_last = pace.channels_last

    def forward(self, images: Tensor) -> Any:
        """What the model makes of images (b c h w)."""
        return self.model(images.contiguous(memory_format=torch.channels_last) if self.channels_last else images)


def ready(accelerator: Accelerator, model: nn.Module, pace: Pace) -> nn.Module:
    """What to call in place of ``model`` while it trains: on its device, in mixed precision, by all processes.

    What accelerate and torch.compile hold of an earlier training is given back.
    """
    accelerator.free_memory()
    if pace.compile:
        torch.compiler.reset()  # it compiles few variants of one piece of code; a new stage begins to count anew
    if pace.channels_last:
        model.to(memory_format=torch.channels_last)
    shell: nn.Module = accelerator.prepare_model(_Shell(model, pace))
    return shell


def descend(
    accelerator: Accelerator, trained: nn.Module, loss: Tensor, optimizers: Sequence[Optimizer], clip: float | None
) -> None:
    """One step of every optimizer down the gradient of the loss.

    In float16 all optimizers share one scale of the loss, which changes when all have stepped.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    accelerator.backward(loss)
    moving, scaler = [each for each in optimizers if _has_gradient(each)], accelerator.scaler
    for optimizer in moving if scaler is not None else ():
        scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_(trained.parameters(), clip)
    for optimizer in moving:
        optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None and moving:
        scaler.update()


def _has_gradient(optimizer: Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
