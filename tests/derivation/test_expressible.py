"""What a model's own code can express: rewritten reshapes, ties, frozen lines, and tracing without numbers."""

import copy
import inspect
import traceback
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from users import InputWidth, OneNumber
from zoo import User, few

from nas_prune.artifact.folder import load, save
from nas_prune.base.errors import ArtifactError, TraceError
from nas_prune.derivation.derive import derive
from nas_prune.derivation.source.edits import edits_of, original, recorded, repeat, rewrite
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch


class Hard(User):
    """Its middle width is a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 10, 3)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        x = x.unflatten(1, (2, 2, 2)).transpose(1, 3).flatten(1, 3)
        return self.head(self.third(x).relu().mean((2, 3)))


def test_a_line_that_cannot_be_expressed_freezes_the_axes_that_meet_there() -> None:
    axes = trace(Hard(), Hard().example())
    assert set(axes.free) == {"first", "third"}
    lines, first = inspect.getsourcelines(Hard.forward)
    line = first + next(number for number, text in enumerate(lines) if "unflatten" in text)
    assert axes["second"].frozen == f"the code of Hard (test_expressible.py:{line}) cannot express it"


def test_a_width_read_off_the_input_is_rewritten_in_a_subclass_of_the_same_name() -> None:
    model = InputWidth()
    axes = trace(model, model.example())
    assert {axis.kind for axis in axes.free.values()} == {"channel", "head", "head_dim", "depth"}
    small = derive(model, axes, Arch.random(axes))
    kind = type(small.attention)
    assert (kind.__name__, kind.__module__) == ("Attention", InputWidth.Attention.__module__)
    assert issubclass(kind, InputWidth.Attention)
    assert original(kind) is InputWidth.Attention is original(InputWidth.Attention)
    assert type(model.attention) is InputWidth.Attention
    assert type(copy.deepcopy(small).attention) is kind


def test_the_dense_model_computes_the_same_with_rewritten_classes() -> None:
    model = InputWidth().eval()
    axes = trace(model, model.example())
    changed = copy.deepcopy(model)
    rewrite(changed, edits_of(model, axes))
    assert type(changed.attention) is not type(model.attention)
    assert torch.equal(changed(model.example()), model(model.example()))


def test_an_error_inside_a_rewritten_method_shows_the_line_of_the_source() -> None:
    model = InputWidth()
    small = derive(model, trace(model, model.example()), Arch.random(trace(model, model.example())))
    with pytest.raises(ValueError, match="not enough values") as caught:
        small.attention(torch.zeros(2, 3))
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.line, frame.name) == ("B, N, C = x.shape", "forward")


def test_what_was_rewritten_can_be_recorded_and_repeated() -> None:
    model = InputWidth()
    axes = trace(model, model.example())
    small = derive(model, axes, Arch.random(axes))
    record, fresh = recorded(small), InputWidth()
    repeat(fresh, record)
    assert type(fresh.attention) is type(small.attention)
    assert recorded(fresh) == record
    ((title, methods),) = record.items()
    for wrong in ({**methods["forward"], "source": "0"}, {**methods["forward"], "places": [[9, 0]]}):
        with pytest.raises(ArtifactError, match="forward"):
            repeat(InputWidth(), {title: {"forward": wrong}})
    with pytest.raises(ArtifactError, match="no module of class"):
        repeat(OneNumber(), record)


def test_two_widths_that_a_module_knows_by_one_number_stay_equal() -> None:
    model = OneNumber()
    axes = trace(model, model.example())
    small = derive(model, axes, Arch.random(axes))
    assert axes.free
    assert small.block.first.out_channels == 2 * small.block.width == small.block.second.out_channels < 12


@pytest.mark.parametrize("name", few(["test_resnet", "test_vit"], ["test_resnet"]))
def test_a_model_without_numbers_has_the_same_axes(name: str) -> None:
    images = torch.zeros(2, 3, 160, 160)
    with torch.device("meta"):
        empty = timm.create_model(name)
    expected, got = (trace(model, images) for model in (timm.create_model(name), empty))
    assert {name: (axis.size, axis.kind, axis.frozen) for name, axis in got.items()} == {
        name: (axis.size, axis.kind, axis.frozen) for name, axis in expected.items()
    }


def test_a_dimension_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(TraceError, match="no such parameter dimension"):
        trace(Hard(), Hard().example(), freeze={("first.weight", 7): "why"})


@pytest.mark.parametrize("name", few(["beit_base_patch16_224", "swinv2_tiny_window8_256"], ["beit_base_patch16_224"]))
def test_an_artefact_remembers_what_was_rewritten(name: str, tmp_path: Path) -> None:
    sizes = {"img_size": 64, "depth": 1} if "beit" in name else {"img_size": 64, "window_size": 4, "depths": (1, 1)}
    model = timm.create_model(name, num_classes=4, embed_dim=48, num_heads=(2, 2) if "swin" in name else 4, **sizes)
    images = torch.randn(2, 3, 64, 64)
    axes = trace(model.eval(), images)
    small = derive(model, axes, Arch.random(axes))
    record = recorded(small)
    save(small, tmp_path / "derived")
    loaded = load(tmp_path / "derived")
    assert recorded(loaded) == record
    assert record
    with torch.no_grad():
        assert torch.equal(loaded(images), small.eval()(images))


def test_what_is_frozen_says_the_reason_of_what_it_is_tied_to() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    axes = trace(model, torch.zeros(2, 3), freeze={("2.weight", 1): "four sensors are soldered on"})
    assert axes["2:2"].frozen == "four sensors are soldered on"
    assert axes["0"].frozen == "tied to a fixed dimension by linear.default in 2 (four sensors are soldered on)"
    assert axes["2"].frozen == "model output"


class Pooled(nn.Module):
    """Attention as timm writes it: fused, or by hand with its own scale; the queries are pooled, as Hiera's are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 3 * 2 * 4), nn.Linear(2 * 4, 6)
        self.fused_attn, self.scale = True, 4**-0.5

    def forward(self, tokens: Tensor) -> Tensor:
        """Of (b n c) as many tokens as half of n."""
        images, count, _ = tokens.shape
        q, k, v = self.qkv(tokens).view(images, count, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.view(images, 2, 2, count // 2, -1).amax(2)
        if self.fused_attn:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


def test_gates_are_looked_for_in_the_model_and_not_in_a_smaller_one_that_goes_another_way() -> None:
    axes = trace(Pooled().eval(), torch.zeros(2, 8, 6))
    assert {axis.kind: axis.size for axis in axes.free.values()} == {"head": 2, "head_dim": 4}
