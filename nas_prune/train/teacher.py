"""A teacher: a network that a smaller one imitates, in the precision of the training."""

import torch
from torch import Tensor, nn

from nas_prune.train.loop import Run
from nas_prune.train.objective import Teacher


def teacher_of(model: nn.Module, run: Run) -> Teacher:
    """What ``model`` says of images (b c h w): logits, without gradients. It learns nothing from here on."""
    model = model.to(run.accelerator.device).eval().requires_grad_(False)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad(), run.accelerator.autocast():
            said: Tensor = model(images)
            return said

    return logits
