"""The network of points: pruned exactly, blind to the order of points, and taught by its own deepest stage."""

import pytest
import torch
from networks.point_network import PointNetwork, farthest, nearest
from networks.shapes import CLASSES, shapes
from torch.nn.functional import cross_entropy
from zoo import Traced, apart

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses.hierarchical_distillation import HierarchicalDistillation
from nas_prune.train.objective import Objective


@pytest.fixture(scope="module")
def net() -> Traced:
    """A tiny network in float64, of clouds of 24 points."""
    torch.manual_seed(0)
    clouds, _ = shapes(6, 24)
    model = PointNetwork(widths=(8, 12), anchors=(6, 3), neighbours=(4, 2)).eval()
    axes = trace(model, clouds[:2], leaves=model.left)
    return Traced(model, axes, clouds.double())


def test_derived_is_gated_and_a_channel_is_read_three_times_in_the_next_stage(net: Traced) -> None:
    widths = {name for name, axis in net.axes.free.items() if axis.kind == "channel"}
    assert [name for name, axis in net.axes.items() if axis.frozen] == ["classifier"]
    assert {"embed.0", "stages.0.transfer.0", "stages.1.transfer.0"} < widths
    read = [member.tensor for member in net.axes["stages.0.transfer.0"].members]
    assert {"stages.1.alpha", "stages.1.beta", "stages.1.transfer.0.weight"} <= set(read)
    model, arch = net.double(), net.random(0.5)
    small = derive(model, net.axes, arch)
    left = len(arch.kept["stages.0.transfer.0"])
    assert small.stages[1].transfer[0].in_channels == 2 * left
    assert small.stages[1].alpha.shape == (1, left, 1, 1)
    with torch.no_grad():
        assert apart(GatedModel(model, net.axes).fixed(arch)(net.images), small(net.images)) <= 1e-9
    assert float(Macs(net.axes)(arch.sizes(net.axes.free))) < Budget("0.5x", Macs(net.axes)).limit


def test_the_order_of_points_does_not_matter(net: Traced) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    model = net.double()
    with torch.no_grad():
        assert apart(model(net.images), model(net.images[..., order])) <= 1e-9
        moved = net.images + 0.1 * torch.randn(net.images.shape, generator=torch.Generator().manual_seed(1))
        assert apart(model(net.images), model(moved)) > 1e-3


def test_anchors_are_as_far_apart_as_can_be_and_neighbours_as_near() -> None:
    points = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 4, 0], [10, 3, 0], [1, 0, 0]])[None]
    anchors = farthest(points, 3)
    assert anchors.tolist() == [[3, 0, 2]]  # 3 is farthest from the centre, 0 from 3, 2 from both
    seats = points[:, anchors[0]]
    assert [sorted(row) for row in nearest(seats, points, 2)[0].tolist()] == [[1, 3], [0, 4], [0, 2]]


def test_shapes_are_a_function_of_the_seed_and_parts_of_them_are_missing() -> None:
    clouds, labels = shapes(10, 64, seed=3)
    assert torch.equal(clouds, shapes(10, 64, seed=3)[0])
    assert not torch.equal(clouds, shapes(10, 64, seed=4)[0])
    assert labels.bincount().tolist() == [2] * len(CLASSES)
    assert clouds.shape == (10, 3, 64)
    torch.testing.assert_close(clouds.norm(dim=1).amax(1), torch.ones(10))
    centre = [each.mean(2).norm(dim=1).max() for each in (clouds, shapes(10, 64, missing=0.0, seed=3)[0])]
    assert max(map(float, centre)) < 1e-5
    whole, cut = (torch.linalg.svdvals(shapes(50, 256, missing=missing, seed=3)[0]) for missing in (0.0, 0.9))
    assert float((cut[:, 2] / cut[:, 0]).mean()) < 0.9 * float((whole[:, 2] / whole[:, 0]).mean())  # they are flatter


def test_its_stages_are_taught_by_the_deepest_one(net: Traced) -> None:
    small = derive(net.double(), net.axes, net.random(0.5))
    loss = HierarchicalDistillation(0.0, a=0.0)
    objective = Objective(loss)
    objective.begin(small, lambda: net.images)
    assert loss.features == ("stages.0",)
    assert loss.heads["stages/0"].in_features == small.feature_info[0]["num_chs"] < 8
    labels = torch.arange(6) % 5
    value = objective(small.eval(), net.images, labels)
    deepest = cross_entropy(small(net.images), labels)
    shallow = cross_entropy(loss.said_by("stages.0", _stage(small, net.images)), labels)
    torch.testing.assert_close(value, deepest + shallow)


def _stage(model: torch.nn.Module, clouds: torch.Tensor) -> torch.Tensor:
    """What the first stage gives."""
    seen: list[torch.Tensor] = []
    handle = model.stages[0].register_forward_hook(lambda *given: seen.append(given[2]))  # type: ignore[operator]
    model(clouds)
    handle.remove()
    return seen[0]
