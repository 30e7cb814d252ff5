"""Widths that are numbers in code: views, splits and slices become attributes; what cannot is frozen."""

import copy
import json
from abc import abstractmethod

import pytest
import torch
from torch import Tensor, nn
from zoo import User

from nas_prune.artifact.difference import difference, rebuild, tensors_of
from nas_prune.base.errors import ArtifactError
from nas_prune.derivation.derive import derive
from nas_prune.derivation.source.edits import edits_of, recorded, repeat, rewrite
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.tracing.arch import Arch


class Pieces(User):
    """A layer of 64 channels in two pieces, whose sizes are numbers in a line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.cut(self.first(x))
        return self.head(self.second(torch.cat([one.relu(), other.sigmoid()], 1)).relu().mean((2, 3)))

    @abstractmethod
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pieces of x."""


class Split(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([16, 48], dim=1)


class TorchSplit(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [16, 2 * 24], 1)


class NamedSplit(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, split_size_or_sections=(16, 48), dim=1)


class EqualSplit(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(32, 1)


class Slices(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, :16], x[:, 16:]


class View(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.view(x.shape[0], 64, 36).view(-1, 64, 6, 6), x.new_zeros(x.shape[0], 0, 6, 6)


class Attention(User):
    """Heads and their widths are numbers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.out = nn.Conv2d(3, 24, 4, stride=4), nn.Linear(24, 96), nn.Linear(32, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 32)
        return self.head(self.out(y).mean(1))


class Flattened(User):
    """A product of a width and a number of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16 * 36, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu().view(-1, 16 * 6 * 6)).relu())


class Twice(User):
    """Two modules of one class, of which each has its own widths."""

    class Inside(nn.Module):
        """Three channels in, three channels out."""

        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, other = torch.split(self.wide(x), [16, 48], 1)
            return self.narrow(torch.cat([one.relu(), other.sigmoid()], 1))

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = self.Inside(), self.Inside(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(x)).mean((2, 3)))


LITERALS = (Split, TorchSplit, NamedSplit, EqualSplit, Slices, View, Attention, Flattened, Twice)


@pytest.mark.parametrize("kind", LITERALS)
def test_a_width_that_is_a_number_in_code_can_shrink(kind: type[User]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    axes = trace(model, model.example())
    assert not [axis.frozen for axis in axes.values() if "code" in str(axis.frozen)]
    arch = Arch.random(axes, keep=0.5)
    verify(model, axes, arch, model.example())
    changed = copy.deepcopy(model)
    rewrite(changed, edits_of(model, axes))
    assert type(changed).__name__ == kind.__name__
    assert torch.equal(changed(model.example()), model(model.example()))


@pytest.mark.parametrize("kind", [Slices, Attention, Twice])
def test_what_became_an_attribute_is_part_of_an_artefact(kind: type[User]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    axes = trace(model, model.example())
    small = derive(model, axes, Arch.random(axes, keep=0.5)).eval()
    change, fresh = difference(kind(), small), kind().eval()
    assert json.loads(json.dumps(change.rewritten)) == recorded(small)
    assert any("size" in name for values in change.attributes.values() for name in values)
    rebuild(fresh, change, tensors_of(small), {})
    assert torch.equal(fresh(model.example()), small(model.example()))


def test_a_record_names_numbers_only() -> None:
    torch.manual_seed(0)
    model = Attention()
    axes = trace(model, model.example())
    ((title, methods),) = recorded(derive(model, axes, Arch.random(axes))).items()
    assert methods["forward"]["attributes"]
    repeat(Attention(), {title: methods})
    with pytest.raises(ArtifactError, match="no number 0 in a call 9"):
        repeat(Attention(), {title: {"forward": {**methods["forward"], "attributes": [[9, 0]]}}})


class Local(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        width = 16
        return x[:, :width], x[:, width:]


class FromTheEnd(Pieces):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, :-48], x[:, -48:]


@pytest.mark.parametrize("kind", [Local, FromTheEnd])
def test_a_slice_that_does_not_follow_freezes_what_it_cuts(kind: type[User]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    axes = trace(model, model.example())
    assert set(axes.free) == {"second"}
    reasons = [str(axis.frozen) for name, axis in axes.items() if name.startswith("first")]
    assert reasons
    assert all(f"the code of {kind.__name__} (test_literals.py:" in why for why in reasons)
    verify(model, axes, Arch.random(axes), model.example())


class Listed(User):
    """Heads of three windows, in a list of which two numbers are one."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.first, self.head = [8, 12, 12], nn.Conv2d(3, 32, 3), nn.Linear(32, 4)
        self.windows = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for width in self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.split(self.first(x), self.sizes, dim=1))
        parts = [window(part) for window, part in zip(self.windows, parts, strict=True)]
        return self.head(torch.cat(parts, 1).mean((2, 3)))


def test_a_list_of_sizes_is_repaired_by_position() -> None:
    torch.manual_seed(0)
    model = Listed().eval()
    axes = trace(model, model.example())
    assert sorted(axis.size for axis in axes.free.values()) == [8, 12, 12]
    names = [name for name, axis in axes.free.items() if axis.size == 12]
    arch = Arch({names[0]: range(5), names[1]: range(2, 9)})
    verify(model, axes, arch, model.example())
    small = derive(model, axes, arch)
    assert (small.sizes, model.sizes) == ([8, 5, 7], [8, 12, 12])
    assert [window.groups for window in small.windows] == [8, 5, 7]
