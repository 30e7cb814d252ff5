"""Tasks whose answer is known by construction: how wide a layer must be, which units must stay, which operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nas_prune.ops import Choice

Pairs = tuple[Tensor, Tensor]
CHANNELS = 4
DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))
PLANTS = {"conv_3x3": 1, "dilated_3x3": 4, "depthwise_5x5": 3}  # the one candidate that sees two pixels so far apart


@dataclass(frozen=True)
class Task:
    """A network to be pruned, and inputs with their classes to train on and to hold out."""

    net: nn.Module
    train: Pairs
    held_out: Pairs

    def loader(self, batch_size: int = 128) -> DataLoader[Pairs]:
        """Shuffled training batches."""
        return DataLoader(TensorDataset(*self.train), batch_size=batch_size, shuffle=True)


class Perceptron(nn.Module):
    """Linear layers of these widths with ReLU, and a linear classifier."""

    def __init__(self, inputs: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        pairs = pairwise((inputs, *widths))
        self.layers = nn.Sequential(*[layer for i, o in pairs for layer in (nn.Linear(i, o), nn.ReLU())])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (b n) -> logits (b k)."""
        logits: Tensor = self.head(self.layers(x))
        return logits


class Chooser(nn.Module):
    """One choice of an operation, ReLU, the mean over the image, a linear classifier."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.num_classes = len(DIRECTIONS)
        sizes = {"in_channels": CHANNELS, "out_channels": channels}
        kinds = {
            "conv_1x1": {"operation": "convolution", "kernel": 1},
            "conv_3x3": {"operation": "convolution", "kernel": 3},
            "depthwise_5x5": {"operation": "convolution", "kernel": 5, "groups": CHANNELS},
            "dilated_3x3": {"operation": "convolution", "kernel": 3, "dilation": 2},
            "max_pool": {"operation": "max_pool", "kernel": 3},
        }
        self.choice = Choice(candidates={name: {**kind, **sizes} for name, kind in kinds.items()})
        self.head = nn.Linear(channels, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c h w) -> logits (b k)."""
        logits: Tensor = self.head(self.choice(x).relu().mean((2, 3)))
        return logits


def planted_width(width: int, *, wider: int = 10, inputs: int = 16, classes: int = 10) -> Task:
    """Classes by a network of ``width`` hidden units in orthogonal directions, for one ``wider`` times as wide.

    A network of fewer hidden units cannot represent the classes, all further ones are for the search to find.
    """
    x, labels, _ = _taught(inputs, width, classes)
    return _task(Perceptron(inputs, [wider * width], classes), x, labels)


def planted_units(width: int, *, wider: int = 10, inputs: int = 16, classes: int = 10) -> tuple[Task, list[int]]:
    """A network that has learnt its task with ``width`` units, among others that nothing reads; and which those are.

    The idle units have three times larger weights, so that their magnitude misleads.
    """
    x, labels, teacher = _taught(inputs, width, classes)
    net = Perceptron(inputs, [wider * width], classes)
    units = torch.randperm(wider * width)[:width].sort().values
    source, hidden = teacher.layers[0], net.layers[0]
    with torch.no_grad():
        hidden.weight.copy_(3 * source.weight.norm(dim=1).mean() * nn.functional.normalize(hidden.weight))
        hidden.weight[units], hidden.bias[units] = source.weight, source.bias
        net.head.weight.zero_()
        net.head.weight[:, units] = teacher.head.weight
        net.head.bias.copy_(teacher.head.bias)
    return _task(net, x, labels), units.tolist()


def planted_choice(best: str, *, images: int = 1664, size: int = 10) -> Task:
    """Images of noise that repeats itself at one distance, in the direction that is the class; a key of ``PLANTS``.

    A filter's output on Gaussian noise depends on the class only through pairs of its taps at that distance:
    a 3x3 kernel spans 1 but not 4, a dilated one 4 but no odd distance, a depthwise 5x5 3 within a channel, where
    the others repeat from one channel to another. So every candidate but one is left with chance, 25 %; but maxima
    of neighbouring windows are not Gaussian, and at distance 1 they tell a diagonal from a straight direction.
    """
    labels = torch.arange(images) % len(DIRECTIONS)
    noise = torch.randn(images, CHANNELS, size, size)
    shifts = [tuple(PLANTS[best] * step for step in direction) for direction in DIRECTIONS]
    moved = torch.stack([noise[i].roll(shifts[k], (1, 2)) for i, k in enumerate(labels.tolist())])
    if best == "depthwise_5x5":
        return _task(Chooser(), (noise + moved) / 2**0.5, labels, held_out=512)
    noise[:, 1::2] = moved[:, 0::2]
    return _task(Chooser(), noise, labels, held_out=512)


def _taught(inputs: int, width: int, classes: int, points: int = 8000) -> tuple[Tensor, Tensor, Perceptron]:
    """Points, the classes that a random network of this width gives them about equally often, and the network."""
    teacher = Perceptron(inputs, [width], classes)
    x = torch.randn(points, inputs)
    with torch.no_grad():
        nn.init.orthogonal_(teacher.layers[0].weight, gain=1.5)
        nn.init.zeros_(teacher.layers[0].bias)
        nn.init.orthogonal_(teacher.head.weight)
        logits = teacher(x)
        teacher.head.weight /= logits.std(0)[:, None]
        teacher.head.bias -= logits.mean(0)
        teacher.head.bias /= logits.std(0)
        return x, teacher(x).argmax(1), teacher


def _task(net: nn.Module, x: Tensor, labels: Tensor, held_out: int = 2000) -> Task:
    return Task(net, (x[held_out:], labels[held_out:]), (x[:held_out], labels[:held_out]))
