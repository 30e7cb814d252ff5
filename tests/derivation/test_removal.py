"""Laws of removal: what is left computes, scores and remembers what it did, and can be put back."""

import pytest
import timm
import torch
from zoo import BACKBONES, Traced, apart, few, traced

from nas_prune.base.errors import SpaceError
from nas_prune.derivation.derive import derive
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import put_back, removed
from nas_prune.derivation.replace import laid_out
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

EXACT = 1e-9
IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SHAPES = ("test_vit",)  # heads; sums and concatenations with all others


@pytest.fixture(params=few(BACKBONES, SHAPES))
def net(request: pytest.FixtureRequest) -> Traced:
    """A backbone."""
    return traced(request.param)


@pytest.fixture
def small() -> Traced:
    """The smallest backbone."""
    return traced("test_resnet")


def moved(gated: GatedModel) -> GatedModel:
    """The same, with gates that are no longer as they began."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in gated.gates.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return gated


@pytest.mark.parametrize("gate", few([n for n, g in gates.items() if not g.looks], ("weight",)))  # see test_manidp
def test_a_removal_changes_neither_the_function_nor_a_score(net: Traced, gate: str) -> None:
    gated = moved(GatedModel(net.double(), net.axes, gate).double()).eval()
    arch, images = net.random(0.6, bits=0.7), net.images.double()
    again, _ = gated_again(gated, removed(gated, arch))
    with torch.no_grad():
        expected, before = gated.fixed(arch)(images), gated.scores()
        assert apart(expected, again.opened()(images)) <= EXACT
        for name, score in again.scores().items():
            assert apart(before[name][list(arch.kept[name])], score) <= EXACT
    sizes = arch.sizes(gated.space.free)
    assert {name: sizes[name] for name in again.space.free} == {n: a.size for n, a in again.space.free.items()}
    assert again.settled.keys() == gated.space.free.keys() - again.space.free.keys()
    assert all(size == sizes[name] for name, size in again.settled.items())
    lost = [name for name in again.settled if sizes[name] > 1 and not inside_a_closed_branch(gated, name, again)]
    assert not lost, "an axis of several units was not found again"


def inside_a_closed_branch(gated: GatedModel, name: str, again: GatedModel) -> bool:
    """Whether no weight that writes an axis is left."""
    return not any(tensor in again.backbone.state_dict() for tensor, _, _ in gated.writers[name])


def test_numbers_are_where_their_places_say_and_go_back_there(small: Traced) -> None:
    gated, arch, images = GatedModel(small.double(), small.axes, "weight").double().eval(), small.random(0.5), IMAGES
    again, places = gated_again(gated, removal := removed(gated, arch))
    before, state = gated.state_dict(), again.state_dict()
    assert places.keys() == state.keys()
    for name, value in state.items():
        if not name.endswith("offset"):
            assert torch.equal(before[name].flatten()[places[name]].to(value.dtype), value), name
    with torch.no_grad():
        for value in removal.small.parameters():
            value.mul_(1.1)
        put_back(gated.backbone, removal.small, removal.places)
        expected = removal.small(images)
        assert apart(expected, derive(gated.backbone, small.axes, arch)(images)) <= EXACT


@pytest.mark.zoo
def test_removals_follow_each_other(small: Traced) -> None:
    gated, first = GatedModel(small.double(), small.axes, "mask").eval(), small.random(0.8)
    again, _ = gated_again(gated, removed(gated, first))
    second = Traced(again.backbone, again.axes, IMAGES).random(0.6, seed=3, bits=0.7)
    last, _ = gated_again(again, removed(again, second))
    with torch.no_grad():
        assert apart(gated.fixed(second.within(first))(IMAGES), last.opened()(IMAGES)) <= EXACT


def test_the_search_space_goes_on_over_what_is_left(small: Traced) -> None:
    space = SearchSpace.read("channels", small.axes)
    gated = GatedModel(small.fresh(), space, "sigmoid").eval()
    arch = Arch({name: range(space.minimum[name]) for name in list(space.free)[:2]})
    again, _ = gated_again(gated, removed(gated, arch))
    for name, axis in again.space.free.items():
        assert axis.divisor == space.free[name].divisor
        assert again.space.minimum[name] == min(axis.size, space.minimum[name])
    assert again.space.free.keys() <= space.free.keys()


def test_stripes_and_choices_are_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=10)
    gated = GatedModel(model, laid_out(model, torch.randn(2, 3, 32, 32), "stripes"), "skeleton")
    with pytest.raises(SpaceError, match="stripes or candidate operations"):
        removed(gated, gated.arch())
