"""A small network of point clouds, after PointMLP (arXiv 2202.07123) as the release of hierarchical self-distillation
(arXiv 2312.16902) has it: in each stage fewer points, each of which looks at its neighbours.

All layers are 1x1 convolutions, and which points are neighbours depends on coordinates alone: so channels can be
pruned. Channel c of a stage is read three times in the next one, by the norm of the group and by columns c and C + c.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PointNetwork(nn.Module):
    """``widths``, ``anchors``, ``neighbours``: of the stages; clouds (b 3 n) -> logits (b k)."""

    def __init__(
        self,
        num_classes: int = 5,
        *,
        widths: Sequence[int] = (32, 64, 128),
        anchors: Sequence[int] = (64, 32, 16),
        neighbours: Sequence[int] = (8, 8, 8),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.groups = nn.ModuleList(Group(*pair) for pair in zip(anchors, neighbours, strict=True))
        self.embed = layer(3, widths[0] // 2)
        entering = [widths[0] // 2, *widths[:-1]]
        self.stages = nn.ModuleList(Stage(*pair) for pair in zip(entering, widths, strict=True))
        self.classifier = nn.Linear(widths[-1], num_classes)

    @property
    def feature_info(self) -> list[dict[str, int | str]]:
        """The stages, in timm's words."""
        widths = [stage.transfer[0].out_channels for stage in self.stages]
        return [{"module": f"stages.{n}", "num_chs": width, "reduction": 2 << n} for n, width in enumerate(widths)]

    @property
    def left(self) -> list[str]:
        """Paths of the modules that need not be traced."""
        return [f"groups.{number}" for number in range(len(self.groups))]

    def forward(self, clouds: Tensor) -> Tensor:
        """Of the last anchors' features, the largest are classified."""
        points, features = clouds.transpose(1, 2), self.embed(clouds[..., None])
        for group, stage in zip(self.groups, self.stages, strict=True):
            anchors, neighbours = group(points)
            features = stage(features, anchors, neighbours)
            points = picked(points, anchors.squeeze(2))
        return self.classifier(features.amax((2, 3)))


class Group(nn.Module):
    """Points (b n 3) -> which of them are anchors (b m 1), and the neighbours of each (b m k).

    It learns nothing and reads no channel, so it is left as it is when the network is traced (``leaves=net.left``).
    """

    def __init__(self, anchors: int, neighbours: int) -> None:
        super().__init__()
        self.anchors, self.neighbours = anchors, neighbours

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Both as indices of points."""
        anchors = farthest(points, self.anchors)
        return anchors[..., None], nearest(picked(points, anchors), points, self.neighbours)


class Stage(nn.Module):
    """Features (b i n 1), anchors (b m 1), their neighbours (b m k) -> (b o m 1)."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(value(1, entering, 1, 1)) for value in (torch.ones, torch.zeros))
        self.transfer = layer(2 * entering, width)
        self.before, self.after = Residual(width), Residual(width)

    def forward(self, features: Tensor, anchors: Tensor, neighbours: Tensor) -> Tensor:
        """The neighbourhood relative to its anchor, over one standard deviation of the cloud, beside the anchor."""
        flat = features.squeeze(3).transpose(1, 2)
        anchor, around = (picked(flat, index).permute(0, 3, 1, 2) for index in (anchors, neighbours))
        away = around - anchor
        centred = away - away.mean((1, 2, 3), keepdim=True)
        spread = centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5
        group = self.alpha * (away / spread) + self.beta
        looked = self.before(self.transfer(torch.cat([group, anchor.expand_as(group)], 1)))
        return self.after(looked.amax(3, keepdim=True))


class Residual(nn.Module):
    """A perceptron of two layers beside its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = layer(width, width)
        self.second, self.norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (b c m k) -> the same."""
        return (x + self.norm(self.second(self.first(x)))).relu()


def layer(entering: int, width: int) -> nn.Sequential:
    """A linear layer of every point, a norm, a rectifier."""
    return nn.Sequential(nn.Conv2d(entering, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def picked(values: Tensor, index: Tensor) -> Tensor:
    """values (b n c), index (b ...) -> (b ... c)."""
    rows = torch.arange(len(values), device=values.device).reshape(-1, *[1] * (index.ndim - 1))
    return values[rows, index]


def farthest(points: Tensor, count: int) -> Tensor:
    """So many points of (b n 3), each as far as can be from those before it: (b count).

    The first is the one farthest from the centre, so that the order of the points does not matter (ours).
    """
    distance = (points - points.mean(1, keepdim=True)).square().sum(2)
    chosen = [distance.argmax(1)]
    for number in range(1, count):
        away = (points - picked(points, chosen[-1][:, None])).square().sum(2)
        distance = away if number == 1 else torch.minimum(distance, away)
        chosen.append(distance.argmax(1))
    return torch.stack(chosen, 1)


def nearest(seats: Tensor, points: Tensor, count: int) -> Tensor:
    """For each of the seats (b m 3) the nearest of the points (b n 3): (b m count)."""
    away = (seats[:, :, None] - points[:, None]).square().sum(3)
    return away.topk(count, dim=2, largest=False).indices
