"""The stereo network: one set of widths for both views, pruned exactly; its parts have known answers."""

import pytest
import torch
from networks.stereo_network import (
    Reassembling,
    StereoNetwork,
    calmed,
    concatenation_volume,
    soft_argmax,
    stereo_loss,
)
from networks.stereograms import stereograms
from torch import Tensor
from zoo import apart

from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch


@pytest.fixture(scope="module")
def net() -> tuple[StereoNetwork, Axes, tuple[Tensor, Tensor]]:
    """A tiny network, its axes, and two views."""
    torch.manual_seed(0)
    left, right, _ = stereograms(2, height=8, width=14, disparities=3)
    model = StereoNetwork(3, width=6, stages=1, dilations=(2,)).eval()
    return model, trace(model, (left, right)), (left.double(), right.double())


def test_both_views_have_one_set_of_widths_and_derived_is_gated(
    net: tuple[StereoNetwork, Axes, tuple[Tensor, Tensor]],
) -> None:
    model, axes, views = net
    free = axes.free
    described = axes["tower.join.1"]  # what a view is described by: columns c and C + c of the first 3-D convolution
    assert [(each.tensor, each.dim) for each in described.members if each.role == "read"] == [("volume.0.0.weight", 1)]
    assert {"tower.stages.0.0", "tower.embeds.0.1", "tower.patterns.0.0.0", "volume.0.0", "guide.1.0"} < free.keys()
    arch = Arch.random(axes, keep=0.5, generator=torch.Generator().manual_seed(0))
    model = model.double()
    for layer in (model.costs.offsets, model.depths.offsets):
        torch.nn.init.normal_(layer.weight)
    small = derive(model, axes, arch)
    assert small.volume[0][0].in_channels == 2 * len(arch.kept["tower.join.1"]) == 6
    gated = GatedModel(model, axes)
    with torch.no_grad():
        for wanted, got in zip(gated.fixed(arch)(*views), small(*views), strict=True):
            assert apart(wanted, got) <= 1e-9
        assert apart(model(*views)[0], small(*views)[0]) > 1e-3


def test_a_volume_holds_a_pixel_beside_what_it_may_be_in_the_other_view() -> None:
    left, right = torch.randn(2, 2, 3, 4, 9)
    volume = concatenation_volume(left, right, 5)
    for d in range(5):
        assert torch.equal(volume[:, :3, d], left)
        assert torch.equal(volume[:, 3:, d, :, d:], right[..., : 9 - d])
        assert not volume[:, 3:, d, :, :d].any()


@pytest.mark.parametrize("shift", [0, 2, 6])
def test_the_best_match_is_at_the_shift(shift: int) -> None:
    scene = torch.randn(1, 8, 6, 30, generator=torch.Generator().manual_seed(shift))
    left, right = scene[..., : 30 - shift], scene[..., shift:]
    first, second = concatenation_volume(left, right, 8).chunk(2, 1)
    costs = -(first - second).square().sum(1)
    inside = (..., slice(8, None))
    assert bool((costs.argmax(1)[inside] == shift).all())
    assert float((soft_argmax(10 * costs, 1)[inside] - shift).abs().max()) < 1e-3


def test_a_stereogram_shows_in_the_left_view_what_is_in_the_right_one() -> None:
    left, right, disparity = stereograms(3, height=10, width=20, disparities=4, seed=1)
    light = right.amax((1, 2, 3))  # dots are up to 1
    for image in range(3):
        for y in range(10):
            for x in range(4, 20):
                seen = right[image, :, y, x - int(disparity[image, y, x])] / light[image]
                assert apart(left[image, :, y, x], seen) < 0.05
    assert 0 <= int(disparity.min()) <= int(disparity.max()) < 4
    assert torch.equal(left, stereograms(3, height=10, width=20, disparities=4, seed=1)[0])


def test_a_windowed_mean_counts_each_disparity_once() -> None:
    costs = torch.full((1, 6, 1, 3), -torch.inf).double()
    costs[0, 0, 0, 0] = costs[0, 5, 0, 1] = 1.0  # at the ends
    costs[0, :, 0, 2] = torch.tensor([5.0, 0, 0, 0, 0, 4.9])  # two far peaks: the likelier one alone
    found = soft_argmax(costs, 1)[0, 0].tolist()
    assert found[:2] == [0.0, 5.0]
    assert found[2] == pytest.approx(1 / (1 + torch.tensor(5.0).exp().item()))
    assert soft_argmax(torch.zeros(1, 6, 1, 1), 5).item() == pytest.approx(2.5)  # all alike: the mean of the range


def test_reassembling_begins_as_the_identity_and_learns_slowly() -> None:
    layer = Reassembling(4).double()
    volume, guide = torch.randn(2, 5, 6, 7).double(), torch.randn(2, 4, 6, 7).double()
    assert apart(volume, layer(volume, guide).detach()) < 1e-7  # the paper's 1e-8 below a sum of 1
    with torch.no_grad():
        layer.offsets.bias.copy_(torch.tensor([0.0, 1, 0, 1]))  # both samples one column to the right
    assert apart(volume[..., 1:], layer(volume, guide)[..., :-1].detach()) < 1e-7
    x = torch.ones(3, requires_grad=True)
    calmed(x.square(), 0.01).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 0.02))


def test_the_loss_is_least_at_the_right_disparity() -> None:
    wanted = torch.tensor([[[1, 3]]])
    right = (-(torch.arange(5).reshape(1, 5, 1, 1) - wanted[:, None]).abs() / 2.0).log_softmax(1)
    exact = stereo_loss((wanted.float(), wanted.float(), right), wanted)
    entropy = -(right.exp() * right).sum(1).mean()
    torch.testing.assert_close(exact, entropy)
    off = stereo_loss((wanted + 1.0, wanted + 2.0, right), wanted)
    torch.testing.assert_close(off, entropy + 0.1 * (0.5 + 1.5))
    assert float(stereo_loss((wanted.float(), wanted.float(), right.roll(1, 1)), wanted)) > float(exact)
