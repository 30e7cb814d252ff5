"""Activation maximisation: the picture that excites a unit most, by gradient ascent on the picture.

As in Qin et al., "Functionality-Oriented Convolutional Filter Pruning" (arXiv 1810.07322), with the usual restraints:
the picture decays, every few steps it is blurred, and what is faint in it is cut off. All units of a layer learn
theirs in one batch, each from the same grey picture, so that equal units get equal pictures.

Ours: the step is of one length, whatever the scale of the unit, and what is maximised is the middle of its map. The
mean over the map, of a filter that is linear in the picture, sees the sum of its taps and nothing else, so all edges
would look alike; and a pattern in the middle cannot be the same but shifted.
"""

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from nas_prune.base.errors import TraceError
from nas_prune.methods.pictures.filters import Filters, hearing

STEPS = 32
RATE, DECAY = 0.1, 0.01  # length of a step, and what the picture loses in it
BLUR, EVERY = 0.8, 4  # radius in pixels, and after how many steps
FAINT = 0.02  # of the brightest pixel: what is darker is none
BATCH = 128  # pictures at a time


class _HeardError(Exception):
    """The layer has spoken; what comes after it does not matter."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def maximised(model: nn.Module, filters: Filters, like: Tensor, *, steps: int = STEPS) -> Tensor:
    """Pictures (c i h w) of the units of a plain model in eval mode, of length 1, or zero where nothing excites a unit.

    ``like``: a picture (i h w), for its shape.
    """
    parts = torch.split(torch.arange(filters.size, device=like.device), BATCH)
    return torch.cat([_ascended(model, filters, units, like, steps) for units in parts])


def _ascended(model: nn.Module, filters: Filters, units: Tensor, like: Tensor, steps: int) -> Tensor:
    """Pictures of some units."""
    pictures = like.new_zeros(len(units), *like.shape)
    for step in range(steps):
        pictures = (1 - DECAY) * pictures + RATE * _unit(_slope(model, filters, units, pictures))
        if (step + 1) % EVERY == 0:
            pictures = gaussian_blur(pictures, [3, 3], [BLUR, BLUR])
            bright = pictures.norm(dim=1, keepdim=True)
            pictures = pictures * (bright >= FAINT * bright.amax((2, 3), keepdim=True))
    return _unit(pictures)


def _slope(model: nn.Module, filters: Filters, units: Tensor, pictures: Tensor) -> Tensor:
    """Where each picture has to go for the middle of its unit's map to rise (c i h w)."""
    pictures = pictures.detach().requires_grad_()
    with torch.enable_grad():
        middle = filters.of(_middle(_said(model, filters.path, pictures), filters.dim))
        (slope,) = torch.autograd.grad(middle[torch.arange(len(units)), units, 0].sum(), pictures)
    return slope


def _said(model: nn.Module, path: str, pictures: Tensor) -> Tensor:
    """What the layer at a path says of pictures; what comes after it is not computed."""

    def hear(output: Tensor) -> None:
        raise _HeardError(output)

    with hearing(model, path, hear):
        try:
            model(pictures)
        except _HeardError as heard:
            return heard.output
    raise TraceError(f"{path} was not called, although it was when the model was traced; trace the model again")


def _middle(output: Tensor, dim: int) -> Tensor:
    """The middle of maps (b c h w), or of tokens (b ... c)."""
    for other in range(1, output.ndim):
        if other != dim % output.ndim:
            output = output.narrow(other, output.shape[other] // 2, 1)
    return output


def _unit(pictures: Tensor) -> Tensor:
    """Of length 1, each; what is zero stays."""
    lengths = pictures.flatten(1).norm(dim=1).clamp(min=torch.finfo(pictures.dtype).tiny)
    scaled: Tensor = pictures / lengths.reshape(-1, *[1] * (pictures.ndim - 1))
    return scaled
