"""SGLP: CKA and optimal partitions of known answer; blocks that do nothing go first, and of no segment the last one."""

import copy
from functools import cache
from itertools import combinations, pairwise
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import BudgetError, DataError
from nas_prune.costs import Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria.of_loss.gradient_norm import gradient_norm
from nas_prune.methods.depth.blocks import Block as Place
from nas_prune.methods.depth.blocks import blocks, likeness
from nas_prune.methods.depth.cka import centred_gram, cka
from nas_prune.methods.depth.partition import enough, partitions
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.segments import order_of, segments
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

Batch = tuple[Tensor, Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alike(first: Tensor, second: Tensor) -> float:
    """Their CKA."""
    return float(cka([centred_gram(first), centred_gram(second)])[0, 1])


def naive(first: Tensor, second: Tensor) -> float:
    """From the definition of HSIC, with H and traces."""
    n = len(first)
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(k: Tensor, other: Tensor) -> Tensor:
        return (k @ h @ other @ h).trace() / (n - 1) ** 2

    one, two = first @ first.T, second @ second.T
    return float(hsic(one, two) / (hsic(one, one) * hsic(two, two)).sqrt())


def test_cka_is_that_of_its_definition_and_blind_to_the_basis() -> None:
    first, second = drawn(50, 20), drawn(50, 12, seed=1)
    assert alike(first, second) == pytest.approx(naive(first, second), rel=1e-12)
    assert 0 < alike(first, second) < 1
    assert alike(first, second) == pytest.approx(alike(second, first), rel=1e-12)
    rotation = torch.linalg.qr(drawn(20, 20, seed=2))[0]
    assert alike(first, first) == pytest.approx(1, rel=1e-12)
    assert alike(first, 3 * first @ rotation + 5) == pytest.approx(1, rel=1e-12)
    assert alike(first @ rotation, -0.1 * second) == pytest.approx(alike(first, second), rel=1e-10)
    assert alike(first, torch.ones(50, 3, dtype=torch.float64)) == 0


def cost_of(values: list[float], starts: tuple[int, ...]) -> float:
    """The sum of squared distances from the means of the segments."""
    parts = [values[first:end] for first, end in pairwise((*starts, len(values)))]
    return sum((value - fmean(part)) ** 2 for part in parts for value in part)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_a_partition_is_the_best_of_all(count: int) -> None:
    values = drawn(count, seed=count).tolist()
    found = partitions(values)
    assert len(found) == count
    for k, partition in enumerate(found, 1):
        tried = [cost_of(values, (0, *cuts)) for cuts in combinations(range(1, count), k - 1)]
        assert partition.cost == pytest.approx(min(tried), abs=1e-12)
        assert cost_of(values, partition.starts) == pytest.approx(partition.cost, abs=1e-12)
        assert [each for part in partition.segments(count) for each in part] == list(range(count))
    assert found[-1].cost == 0
    assert all(after.cost <= before.cost + 1e-12 for before, after in pairwise(found))


def test_known_partitions() -> None:
    steps = partitions([0, 0, 0, 5, 5, 5, 10, 10])
    assert (steps[2].cost, steps[2].starts) == (0, (0, 3, 6))
    rough = partitions([0, 0.1, 0.2, 5, 5.1, 9, 9.3])
    assert rough[2].starts == (0, 3, 5)
    assert rough[2].cost == pytest.approx(0.07)
    assert enough(steps, 0.05) == enough(rough, 0.05) == 3
    assert enough(partitions([2.0] * 4), 0.05) == 1


class Block(nn.Module):
    """Two convolutions beside what goes through, or beside a third one where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 3, stride, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)).relu()


class Residual(nn.Module):
    """A stem, two stages, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        shapes = [(6, 6, 1), (6, 6, 1), (6, 6, 1), (6, 8, 2), (8, 8, 1)]
        self.blocks = nn.Sequential(*[Block(*shape) for shape in shapes])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def images() -> list[Batch]:
    return [(drawn(24, 3, 10, 10, seed=seed), torch.arange(24) % 4) for seed in (3, 4)]


@cache
def trained() -> tuple[Residual, Axes]:
    """The network with statistics of some images, traced."""
    torch.manual_seed(0)
    model = Residual().double()
    for x, _ in 10 * images():
        model(x)
    return model.eval(), trace(model, images()[0][0][:2])


def residual(idle: int | None = None, space: str = "depth") -> GatedModel:
    """It gated; block ``idle`` adds nothing."""
    model, axes = trained()
    model = copy.deepcopy(model)
    if idle is not None:
        nn.init.zeros_(model.blocks[idle].bn2.weight)
        nn.init.zeros_(model.blocks[idle].bn2.bias)
    return GatedModel(model, SearchSpace.read(space, axes))


class Twice(nn.Module):
    """Blocks of two branches each, like those of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x.relu())
        return x + self.second(x.tanh())


def asked(gated: GatedModel, limit: float, scores: Scores | None = None) -> Question:
    """What of the network is within so many MACs."""
    found = gradient_norm(gated, images(), draws=1) if scores is None else scores
    return Question(found, Macs(gated.axes), limit, gated.space, gated=gated, batches=images())


def closed(arch: Arch) -> set[str]:
    """The blocks whose branches are."""
    return {name.removesuffix(".depth") for name, kept in arch.kept.items() if not kept}


def test_the_blocks_of_a_resnet_and_of_a_transformer() -> None:
    found = blocks(residual())
    assert [block.path for block in found] == [f"blocks.{index}" for index in range(5)]
    assert [block.branches for block in found[2:5]] == [("blocks.2.depth",), (), ("blocks.4.depth",)]
    model = nn.Sequential(nn.Linear(5, 4), Twice(), Twice(), nn.Linear(4, 3))
    several = blocks(GatedModel(model, trace(model, torch.randn(2, 5))))
    assert [block.path for block in several] == ["1", "2"]
    assert [block.branches for block in several] == [(f"{at}.first.depth", f"{at}.second.depth") for at in (1, 2)]


@pytest.mark.parametrize("idle", [1, 4])
def test_a_block_that_does_nothing_is_like_the_one_before_and_goes_first(idle: int) -> None:
    gated = residual(idle)
    similar = likeness(gated, blocks(gated), images())
    assert torch.allclose(similar, similar.T)
    assert float(similar[idle + 1, idle]) == pytest.approx(1, rel=1e-12)
    assert float(similar[0, -1]) < 0.95
    dense = float(Macs(gated.axes)({}))
    assert closed(segments(asked(gated, dense - 1), number=1).arch) == {f"blocks.{idle}"}


def naive_likeness(model: Residual, batch: Tensor) -> Tensor:
    """Between what goes into the blocks and what comes out of them, one after another."""
    seen = [model.stem(batch).detach()]
    for block in model.blocks:
        seen.append(block(seen[-1]).detach())
    return torch.tensor([[naive(first.flatten(1), second.flatten(1)) for second in seen] for first in seen])


def test_likeness_is_the_mean_over_batches_of_the_naive_one() -> None:
    gated = residual()
    expected = sum(naive_likeness(gated.plain(), x) for x, _ in images()) / 2
    assert torch.allclose(likeness(gated, blocks(gated), images()).float(), expected, atol=1e-6)


def test_a_score_is_the_norm_of_the_gradient_of_networks_drawn_anew_around_the_branch() -> None:
    gated = residual()
    scores = gradient_norm(gated, images(), draws=2)
    own, expected = gated.plain(), 0.0
    for seed in (0, 1):
        model = copy.deepcopy(own)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            for module in model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        for name in ("conv1", "bn1", "conv2", "bn2"):
            getattr(model.blocks[2], name).load_state_dict(getattr(own.blocks[2], name).state_dict())
        model.train()
        sum(F.cross_entropy(model(x), labels) / 2 for x, labels in images()).backward()
        expected += float(sum(each.grad.square().sum() for each in model.parameters()) ** 0.5) / 2
    assert float(scores["blocks.2.depth"]) == pytest.approx(expected, rel=1e-9)


def test_a_batch_of_one_image_whose_maps_have_no_statistics_is_told() -> None:
    gated = residual()
    one, small = (drawn(1, 3, size, size) for size in (10, 4))  # small: blocks.4 makes maps of one place
    assert all(float(score) > 0 for score in gradient_norm(gated, [(one, torch.zeros(1).long())], draws=1).values())
    with pytest.raises(DataError, match=r"no statistics of a batch of one image .* leave that batch out"):
        gradient_norm(gated, [(drawn(3, 3, 4, 4), torch.arange(3)), (small, torch.zeros(1).long())], draws=1)


def test_a_unit_scores_the_norm_of_the_gradient_of_what_writes_it() -> None:
    gated = residual(space="widths_and_depth")
    model = gated.plain()
    sum(F.cross_entropy(model(x), labels) / 2 for x, labels in images()).backward()
    by_hand = model.blocks[1].conv1.weight.grad.square().sum((1, 2, 3)).sqrt()
    assert torch.allclose(gradient_norm(gated, images(), draws=1)["blocks.1.conv1"], by_hand, rtol=1e-9)


def test_blocks_go_in_turn_and_no_segment_loses_its_last() -> None:
    made = [Place(str(index), (f"{index}.depth",)) for index in range(5)]
    fixed = Place("5", ())
    scores = {f"{index}.depth": torch.tensor([score]) for index, score in enumerate([5.0, 1, 3, 9, 2])}
    order = order_of([made[:3], [made[3]], [made[4], fixed], []], scores)
    assert [block.path for block in order] == ["1", "4", "2"]


def test_a_larger_segment_begins_and_what_does_nothing_goes_first_of_its_own() -> None:
    made = [Place(str(index), (f"{index}.depth",)) for index in range(9)]
    scores = {f"{index}.depth": torch.tensor([score]) for index, score in enumerate([5.0, 6, 7, 8, 0, 9, 4, 3, 2])}
    order = [block.path for block in order_of([made[:4], made[4:6], made[6:]], scores)]
    assert order == ["0", "8", "4", "1", "7", "2"]  # at 1/4, 1/3, 1/2 (of score 0, then 6), 2/3, 3/4


def test_of_every_segment_a_block_stays_and_limits_are_met() -> None:
    gated = residual()
    scores = gradient_norm(gated, images(), draws=1)
    cost = Macs(gated.axes)
    dense, least = float(cost({})), float(cost(dict.fromkeys(gated.space.free, 0.0)))
    gone = []
    for step in range(6):
        limit = dense - step / 5 * (dense - least)
        question = asked(gated, limit, scores)
        arch = segments(question).arch
        assert question.spent(arch.sizes(gated.space.free)) <= limit
        gone.append(closed(arch))
    assert gone[0] == set()
    assert all(before <= after for before, after in pairwise(gone[:4]))
    with pytest.raises(BudgetError, match="Raise the budget"):
        segments(asked(gated, least - 1, scores))


def test_widths_take_what_the_blocks_leave() -> None:
    gated = residual(space="widths_and_depth")
    cost, half = Macs(gated.axes), 0.5 * float(Macs(gated.axes)({}))
    scores = gradient_norm(gated, images(), draws=1)
    deep, shallow = (segments(asked(gated, half, scores), share=share).arch for share in (0.0, 1.0))
    assert closed(deep) == set() != closed(shallow)
    widths = {name for name, axis in gated.space.free.items() if axis.kind == "channel"}
    assert sum(len(deep.kept[name]) for name in widths) < sum(len(shallow.kept[name]) for name in widths)
    assert all(float(cost(arch.sizes(gated.space.free))) <= half for arch in (deep, shallow))


def test_images_are_looked_at_once_and_needed() -> None:
    gated = residual()
    question, seen = asked(gated, float(Macs(gated.axes)({})) - 1), []
    handle = gated.register_forward_hook(lambda *_: seen.append(1))
    for share in (0.99, 0.9, 0.8):
        segments(question.within(share * question.limit))
    handle.remove()
    assert len(seen) == 2
    with pytest.raises(DataError, match="at least one batch"):
        segments(Question(question.scores, question.cost, question.limit, gated.space, gated=gated))
    with pytest.raises(DataError, match="give `gated`"):
        segments(Question(question.scores, question.cost, question.limit, gated.space))
