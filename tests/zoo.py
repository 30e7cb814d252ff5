"""What the laws are tried on: the smallest sensible member of each family, and modules of a user."""

import copy
import gc
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
from einops import einsum, rearrange
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from nas_prune.derivation.trace import trace
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.oracle import perturbed


@dataclass(frozen=True)
class Backbone:
    """How to build one member: side of its square images, and arguments that make it smaller than timm's default."""

    image_size: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)


BACKBONES = {
    "resnet18": Backbone(),
    "test_resnet": Backbone(),
    "resnetv2_18": Backbone(),
    "resnetv2_standardized": Backbone(),
    "resnext26ts": Backbone(),
    "vgg11": Backbone(options={"mlp_ratio": 1 / 64}),
    "densenet121": Backbone(options={"block_config": (2, 2, 2, 2)}),
    "mobilenetv2_050": Backbone(),
    "mobilenetv3_small_050": Backbone(),
    "test_efficientnet": Backbone(),
    "regnetx_002": Backbone(),
    "regnety_002": Backbone(),
    "test_convnext": Backbone(),
    "test_convnext2": Backbone(),
    "test_vit": Backbone(options={"img_size": 32}),
    "deit_tiny_patch16_224": Backbone(options={"img_size": 32, "depth": 2}),
    "test_vit2": Backbone(options={"img_size": 32}),
}
# Between them they and the modules of users below run every line of the package that all of the backbones run: residual
# branches and max pooling; concatenation; depthwise convolutions and squeeze-and-excite; group norms and standardised
# weights; patches, class token, attention and layer norms.
FEW = ("resnet18", "densenet121", "test_efficientnet", "resnetv2_standardized", "test_vit")


def few(cases: Iterable[Any], by_default: Container[Any] = FEW) -> list[Any]:
    """Parameters of a test, one or a tuple each: those that only repeat its law elsewhere are behind the mark zoo."""
    several = [(case, case if isinstance(case, tuple) else (case,)) for case in cases]
    return [pytest.param(*each, marks=() if case in by_default else pytest.mark.zoo) for case, each in several]


def build(name: str) -> nn.Module:
    """A backbone with ten classes, in eval mode; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "resnetv2_standardized":  # the class of resnetv2_50x1_bit, one block per stage
            norm, options = GroupNormAct, {"layers": (1, 1, 1, 1), "channels": (128, 256, 512, 1024)}
            return ResNetV2(**options, num_classes=10, stem_type="fixed", conv_layer=StdConv2d, norm_layer=norm).eval()
        return timm.create_model(name, num_classes=10, **BACKBONES[name].options).eval()


@dataclass(frozen=True)
class Traced:
    """A model with its axes and its images (b 3 h w), b = 2. Tests work on copies."""

    model: nn.Module
    axes: Axes
    images: Tensor

    def fresh(self) -> nn.Module:
        """A copy with its own weights, in float32 and eval mode."""
        return copy.deepcopy(self.model)

    def double(self) -> nn.Module:
        """A copy in float64 with every number moved: fresh zeros and ones would hide errors."""
        model = copy.deepcopy(self.model).double()
        model.load_state_dict(perturbed(model, torch.Generator().manual_seed(1)))
        return model

    def random(self, keep: float, seed: int = 0, bits: float = 1.0) -> Arch:
        """A random share of every free axis; ``bits``: of the branches."""
        return Arch.random(self.axes, keep, bits=bits, generator=torch.Generator().manual_seed(seed))

    def single(self) -> Arch:
        """One unit of every free axis, the last one."""
        return Arch({name: [axis.size - 1] for name, axis in self.axes.free.items()})


def traced_model(model: nn.Module, images: Tensor) -> Traced:
    """Trace a model of one's own."""
    return Traced(model.eval(), trace(model, images), images)


@cache
def traced(name: str) -> Traced:
    """A backbone, traced once."""
    size = BACKBONES[name].image_size
    found = traced_model(build(name), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2)))
    gc.freeze()  # it stays: no garbage collection looks at its graph again
    return found


def apart(expected: Tensor, got: Tensor) -> float:
    """Largest difference, relative to the largest magnitude."""
    assert expected.shape == got.shape
    return float((expected - got).abs().max() / expected.abs().max())


def classifier_width(classifier: nn.Module) -> int:
    """Inputs of a classifier, a linear layer or a 1x1 convolution, possibly wrapped."""
    return next(m for m in classifier.modules() if isinstance(m, nn.Linear | nn.Conv2d)).weight.shape[1]


class User(nn.Module):
    """A module that a user wrote: no class that the package could know."""

    def example(self) -> Tensor:
        """Images that it takes."""
        return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class ChannelSum(User):
    """Sums running over channels, for which there is no rule, between two convolutions."""

    class Running(nn.Module):
        """y_c = x_0 + ... + x_c."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.running, self.second = nn.Conv2d(3, 6, 3), self.Running(), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.running(self.first(x)).relu()).relu().mean((2, 3)))


class Einops(User):
    """Attention in einops: heads and their widths are letters of a pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 6
        self.patch = nn.Conv2d(3, 10, 4, stride=4)
        self.q, self.k, self.v = (nn.Linear(10, 6 * 4) for _ in range(3))
        self.mix, self.head = nn.Parameter(torch.randn(9, 6 * 4)), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.patch(x), "b c h w -> b (h w) c")
        q, k, v = (rearrange(layer(x), "b n (h d) -> b h n d", h=self.heads) for layer in (self.q, self.k, self.v))
        weights = einsum(q, k, "b h n d, b h m d -> b h n m").softmax(-1)
        y = rearrange(einsum(weights, v, "b h n m, b h m d -> b h n d"), "b h n d -> b n (h d)")
        return self.head(einsum(y, self.mix, "b n i, o i -> b n o").relu().mean(1))


class Shared(User):
    """One convolution and one norm, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.norm = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.again(self.stem(x).relu())).relu()
        return self.head(self.norm(self.again(x)).relu().mean((2, 3)))


class Centred(User):
    """One module without parameters, called on two axes of different widths."""

    class Centre(nn.Module):
        """x less its mean over channels."""

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(1, keepdim=True)

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.head = self.Centre(), nn.Linear(12, 4)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.centre(self.first(x)).relu()
        return self.head(self.centre(self.second(x)).relu().mean((2, 3)))


class Nested(User):
    """A mean inside a submodule, then one of the module's own, over another axis."""

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.head = Centred.Centre(), nn.Linear(12, 4)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.centre(self.first(x)).relu())
        return self.head((x - x.mean(1, keepdim=True)).relu().mean((2, 3)))


class Tied(User):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight, self.head = self.first.weight, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.mean((2, 3))).relu()
        return self.head(self.second(self.first(x).relu()).relu())


class Unused(User):
    """A layer that ``forward`` never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(x).relu().mean((2, 3)))


USERS = (ChannelSum, Einops, Shared, Centred, Nested, Tied)
