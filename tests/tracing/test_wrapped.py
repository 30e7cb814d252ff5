"""Models as people bring them: gated before, compiled, wrapped for several devices, with tensors kept in attributes."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from users import InputWidth

from nas_prune.base.errors import SpaceError, TraceError
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    """Two convolutions and a classifier."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    return nn.Sequential(*parts).double().eval()


def test_a_second_gated_model_takes_the_place_of_the_first() -> None:
    model = plain()
    axes, dense = trace(model, IMAGES), model(IMAGES)
    few, many = Arch.random(axes, keep=0.25), Arch.random(axes, keep=0.75)
    first = GatedModel(model, axes)
    first.fixed(few)(IMAGES)
    second = GatedModel(model, axes, gate="weight").eval()
    torch.testing.assert_close(second.fixed(many)(IMAGES), derive(model, axes, many)(IMAGES), rtol=0, atol=1e-12)
    torch.testing.assert_close(second.plain()(IMAGES), dense, rtol=0, atol=0)
    with pytest.raises(SpaceError, match="another GatedModel was made of this backbone"):
        first(IMAGES)


def test_a_gated_backbone_called_by_itself_computes_what_it_says() -> None:
    model = plain()
    axes, dense = trace(model, IMAGES), model(IMAGES)
    gated = GatedModel(model, axes)
    assert not torch.allclose(gated.fixed(Arch.random(axes, keep=0.25))(IMAGES), dense)
    torch.testing.assert_close(model(IMAGES), dense, rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))])
def test_a_wrapped_model_is_the_model_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = plain()
    wrapped = wrap(model)
    axes = trace(wrapped, IMAGES)
    assert set(axes.free) == {"0", "2"}
    arch = Arch.random(axes)
    verify(wrapped, axes, arch, IMAGES)
    assert type(derive(wrapped, axes, arch)) is nn.Sequential
    assert GatedModel(wrapped, axes).backbone is model


def test_a_model_that_compiles_itself_is_traced_and_stays_compiled() -> None:
    model = plain()
    model.compile()
    model[2].compile()
    compiled = model[2]._compiled_call_impl
    axes = trace(model, IMAGES)
    assert set(axes.free) == {"0", "2"}
    verify(model, axes, Arch.random(axes), IMAGES)
    assert model[2]._compiled_call_impl is compiled is not None


def test_a_part_without_eager_code_is_named() -> None:
    model = plain()
    model[0] = torch.compile(model[0])
    with pytest.raises(TraceError, match=r"^0 is wrapped by torch\.compile; give the module that it was made of"):
        trace(model, IMAGES)


class Keeps(nn.Module):
    """Only its forward sets what it keeps: a grid, an attention map, a cache by size, and a plain object's state."""

    class State:
        """A helper that is no module."""

        grid: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.cache: dict[int, Tensor] = {}
        self.history: list[Tensor] = []
        self.state = self.State()
        self.attention: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if size not in self.cache:
            self.cache[size] = torch.arange(size, dtype=x.dtype)
        if self.state.grid is None:
            self.state.grid = torch.ones(size, dtype=x.dtype)
        x = self.first(x)
        self.attention = x.softmax(-1)
        self.history.append(self.attention)
        return self.second(self.attention * x) + self.cache[size] + self.state.grid


@pytest.mark.parametrize("used", [False, True])
def test_what_forward_sets_is_left_as_it_was(used: bool) -> None:
    model = Keeps().double()
    if used:
        model(IMAGES)  # an attention map that has gradients, which deepcopy refuses
    before = copy.copy(model.cache), list(model.history), model.state.grid, model.attention
    axes = trace(model, IMAGES)
    assert set(axes.free) == {"first"}
    verify(model, axes, Arch.random(axes), IMAGES)
    small = derive(model, axes, Arch.random(axes))
    assert (model.cache, model.history, model.state.grid) == before[:3]
    assert model.attention is before[3]
    kept = [*small.cache.values(), *small.history, small.state.grid]
    assert not any(isinstance(each, FakeTensor) for each in kept)
    assert small(IMAGES).shape == model(IMAGES).shape


class TwoHeads(nn.Module):
    """Its second head runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 3)
        self.extra, self.head = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = self.second(self.first(x).relu()).relu()
        y = self.head(self.third(middle).relu().mean((2, 3)))
        return (y, self.extra(middle).mean((2, 3))) if self.training else y


def test_what_is_read_in_training_only_stays_so_that_a_derived_model_can_train() -> None:
    model = TwoHeads().double().eval()
    axes = trace(model, IMAGES)
    assert set(axes.free) == {"first", "third"}
    assert axes["second"].frozen == "read by extra.0, which runs in training only"
    assert axes["extra.0"].frozen == "read by extra.0, which runs in training only"
    arch = Arch.random(axes)
    verify(model, axes, arch, IMAGES)
    outputs = derive(model, axes, arch).train()(IMAGES)
    assert [tuple(output.shape) for output in outputs] == [(2, 4), (2, 4)]


def test_a_derived_model_of_a_rewritten_class_can_be_saved_and_copied(tmp_path: Path) -> None:
    model = InputWidth().eval()
    axes = trace(model, model.example())
    small = derive(model, axes, Arch.random(axes))
    torch.save(small, tmp_path / "small.pt")
    loaded = torch.load(tmp_path / "small.pt", weights_only=False)
    for again in (loaded, copy.copy(small), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(again.attention) is type(small.attention) is not type(model.attention)
        torch.testing.assert_close(again(model.example()), small(model.example()), rtol=0, atol=0)


class Drawing(TwoHeads):
    """In training it draws whether its second head runs: no graph can say it."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = self.second(self.first(x).relu()).relu()
        y = self.head(self.third(middle).relu().mean((2, 3)))
        if self.training and torch.rand(()).item() < 2:
            return y, self.extra(middle).mean((2, 3))
        return y


def test_what_is_read_in_training_only_stays_where_training_has_no_graph() -> None:
    model = Drawing().double().eval()
    axes = trace(model, IMAGES)
    assert set(axes.free) == {"first", "third"}
    assert axes["second"].frozen == "read by a part that runs in training only"
    arch = Arch.random(axes)
    verify(model, axes, arch, IMAGES)
    assert len(derive(model, axes, arch).train()(IMAGES)) == 2


class Auxiliary(TwoHeads):
    """Its features are two, of which its second head reads one: timm's InceptionV3 is like this."""

    num_features = 6

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.second(self.first(x).relu()).relu()
        return self.third(middle).relu(), self.extra(middle).mean((2, 3))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, extra = self.forward_features(x)
        return self.forward_head(features), extra


def test_features_may_be_more_than_one_tensor() -> None:
    model = Auxiliary().double().eval()
    axes = trace(model, IMAGES)
    assert set(axes.free) == {"first", "second", "third", "extra.0"}
    arch = Arch.random(axes)
    verify(model, axes, arch, IMAGES)
    assert len(derive(model, axes, arch).train()(IMAGES)) == 2
