"""HRank: the mean rank of the maps that are read, beside a naive loop; where there is no map, it says so."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_prune.base.errors import DataError, SpaceError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria.of_features.hrank import hrank
from nas_prune.methods.gated import GatedModel

Batch = tuple[Tensor, Tensor]


class Maps(nn.Module):
    """An axis that one layer reads, one that two read, one of the two after a concatenation, and a pooled one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)
        self.third, self.last, self.head = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 6, 1), nn.Linear(6, 4)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``second``, ``third`` and ``last`` read."""
        first = self.norm(self.first(x)).relu()
        second = (self.second(first) - 0.5).relu()
        return first, second, torch.cat([second.round(), self.third(second).relu()], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.read(x)[2]).mean((2, 3)))


def maps() -> tuple[GatedModel, list[Batch]]:
    """The network above, and two batches."""
    generator = torch.Generator().manual_seed(3)
    model = Maps().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        model.first.weight[2], model.first.bias[2], model.norm.bias[2] = 0, 0, 1.0  # a constant map
        model.norm.weight[3], model.norm.bias[3] = 0, -1.0  # a closed one
    draw = [torch.randn(size, 3, 9, 8, generator=generator) for size in (3, 2)]
    return GatedModel(model, trace(model, draw[0])), [(x, torch.zeros(len(x)).long()) for x in draw]


def ranks_of(maps: Tensor) -> list[float]:
    """By hand: the mean over images of the rank of each channel."""
    found = [[np.linalg.matrix_rank(each.detach().numpy()) for each in image] for image in maps]
    return np.mean(found, axis=0).tolist()


def test_a_score_is_the_mean_rank_of_the_maps_that_are_read() -> None:
    gated, batches = maps()
    images = torch.cat([x for x, _ in batches])
    first, second, both = map(ranks_of, gated.plain().read(images))
    scores = hrank(gated, batches)
    assert scores["first"].tolist() == pytest.approx(first)
    assert scores["second"].tolist() == pytest.approx([(a + b) / 2 for a, b in zip(second, both[:4], strict=True)])
    assert scores["third"].tolist() == pytest.approx(both[4:])
    best = max(float(scores[name].max()) for name in ("first", "second", "third"))
    assert scores["last"].tolist() == pytest.approx([best] * 6)  # read as no map: it stays
    assert scores["first"][2:4].tolist() == [1, 0]


def test_as_many_images_are_looked_at_as_are_asked_for() -> None:
    gated, batches = maps()
    images = torch.cat([x for x, _ in batches])
    some = hrank(gated, batches, images=4)
    assert all(torch.equal(score, some[name]) for name, score in hrank(gated, [(images[:4], None)]).items())
    assert not torch.equal(some["first"], hrank(gated, batches)["first"])


def test_no_batch_and_no_map_are_errors() -> None:
    gated, _ = maps()
    with pytest.raises(DataError, match="at least one batch"):
        hrank(gated, [])
    model, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(2, 5)
    with pytest.raises(SpaceError, match="another criterion, such as magnitude"):
        hrank(GatedModel(model, trace(model, x)), [(x, torch.zeros(2))])
