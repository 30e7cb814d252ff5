"""Forms in which people write models: other names of operators, other layers, other inputs and outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from nas_prune.base.axis import BITS
from nas_prune.base.errors import TraceError
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.tracing import Axes, rule
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.ruled import RULES

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(axes: Axes) -> list[str]:
    """The free axes that are widths."""
    return [name for name, axis in axes.free.items() if axis.kind not in BITS]


def proven(model: nn.Module, inputs: Any = IMAGES) -> tuple[Axes, nn.Module]:
    """The axes of a model and, verified, what is left of it at half of every width."""
    torch.manual_seed(0)
    model.eval()
    axes = trace(model, inputs)
    arch = Arch.random(axes, keep=0.5)
    verify(model, axes, arch, inputs)
    return axes, derive(model, axes, arch)


class Meet(nn.Module):
    """Two convolutions whose outputs meet in a function, before two more."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.meet, self.one, self.two = meet, nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.read, self.out = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.read(self.meet(self.one(x), self.two(x)))))


JOINED = {
    "concat": lambda a, b: torch.concat([a, b], 1),
    "hstack": lambda a, b: torch.hstack([a, b]),
    "column_stack": lambda a, b: torch.column_stack([a, b]),
}
TIED = {
    "multiply": torch.multiply,
    "divide": lambda a, b: torch.divide(a, 2 + b.sigmoid()),
    "subtract": torch.subtract,
    "negative": lambda a, b: b + torch.negative(a),
    "absolute": lambda a, b: b + torch.absolute(a),
    "clip": lambda a, b: b + torch.clip(a, -1, 1),
    "expit": lambda a, b: b + torch.special.expit(a),
    "greater": lambda a, b: torch.where(torch.greater(a, 0), a, b),
    "arctan": lambda a, b: b + torch.arctan(a),
    "swapaxes": lambda a, b: (a.swapaxes(1, 3) + b.swapaxes(1, 3)).swapaxes(1, 3),
    "moveaxis": lambda a, b: torch.moveaxis(torch.moveaxis(a + b, 1, -1), -1, 1),
    "skip through a function": lambda a, b: a + torch.abs(a) + b + torch.abs(b),
    "in place": lambda a, b: a.mul_(2).add_(b),
    "largest channel": lambda a, b: a * torch.max(b, 1, keepdim=True)[0],
    "smallest channel": lambda a, b: a * b.min(dim=1, keepdim=True).values,
    "amin": lambda a, b: a * b.amin(1, keepdim=True),
    "logical": lambda a, b: a * torch.logical_xor(b > 0, a > 0),
}


@pytest.mark.parametrize("name", JOINED)
def test_other_names_of_a_concatenation_leave_every_width_free(name: str) -> None:
    axes, _ = proven(Meet(JOINED[name], 16))
    assert set(widths(axes)) >= {"one", "two", "read"}


@pytest.mark.parametrize("name", TIED)
def test_other_names_of_operators_leave_the_widths_free(name: str) -> None:
    axes, _ = proven(Meet(TIED[name], 8))
    assert set(widths(axes)) >= {"one", "read"}, {name: axis.frozen for name, axis in axes.items()}


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: torch.tensordot(a, b.mean((2, 3)), dims=([1], [1]))[:, None].mean(-1) + a,
        lambda a, b: a * F.cosine_similarity(a, b, 1)[:, None],
        lambda a, b: a * torch.linalg.norm(b, dim=1, keepdim=True),
        lambda a, b: a * torch.linalg.vecdot(a, b, dim=1)[:, None],
        lambda a, b: (a.flatten(2).mT @ b.flatten(2)).mean((1, 2))[:, None, None, None] * a,
        lambda a, b: a * torch.norm(b, dim=1, keepdim=True) * b.norm(dim=1, keepdim=True),
        lambda a, b: a * b.logsumexp(1, keepdim=True),
        lambda a, b: a * torch.argmax(b, 1, keepdim=True),
        lambda a, b: (
            a + torch.bilinear(a.mean((2, 3)), b.mean((2, 3)), torch.ones(8, 8, 8).to(a), None)[..., None, None]
        ),
    ],
)
def test_a_call_that_no_gate_reaches_is_frozen_and_what_is_left_exact(meet: Callable[[Tensor, Tensor], Tensor]) -> None:
    axes, _ = proven(Meet(meet, 8))
    assert "read" in axes.free


@dataclass
class Output:
    """What a model of today returns."""

    logits: Tensor
    name: str
    hidden: list[Tensor] | None = None
    count: int = 3


class Forms(nn.Module):
    """Takes and returns whatever its functions say."""

    def __init__(self, take: Callable[..., Tensor], give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.take, self.give = take, give
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.give(self.head(self.first(self.take(*args, **kwargs)).relu().mean((2, 3))))


@pytest.mark.parametrize(
    "give",
    [
        lambda y: Output(y, "logits", [y + 1]),
        lambda y: {"out": y, "none": None, "text": "x", "number": 3, "nested": [(y * 2, 1.5)]},
        lambda y: (y, None, 7),
        lambda y: [y],
    ],
)
def test_outputs_may_hold_anything_beside_tensors(give: Callable[[Tensor], Any]) -> None:
    axes, small = proven(Forms(lambda x: x, give))
    assert widths(axes) == ["first"]
    assert type(small(IMAGES)) is type(give(torch.zeros(2, 4)))


class Named(nn.Module):
    """Takes an image by position or name, and a shift by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image: Tensor, scale: float = 2.0, *, shift: Tensor | None = None) -> Tensor:
        y = self.first(image * scale).relu().mean((2, 3))
        return self.head(y if shift is None else y + shift)


SHIFT = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Forms(lambda batch: batch["image"], lambda y: y), {"image": IMAGES}),
        (Forms(lambda batch: batch["image"], lambda y: y), ({"image": IMAGES, "shift": SHIFT},)),
        (Forms(lambda images: torch.stack(images), lambda y: y), list(IMAGES)),
        (Forms(lambda images: torch.cat(images), lambda y: y), ([IMAGES, IMAGES],)),
        (Named(), {"image": IMAGES, "shift": SHIFT}),
        (Named(), {"shift": SHIFT, "image": IMAGES}),
        (Named(), (IMAGES, 0.5)),
    ],
)
def test_inputs_may_be_mappings_lists_and_given_by_name(model: nn.Module, inputs: Any) -> None:
    axes, _ = proven(model, inputs)
    assert widths(axes) == ["first"]


LAYERS = {
    "instance norm": lambda: (nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 6, 1), nn.InstanceNorm2d(6)),
    "tracked instance norm": lambda: (nn.InstanceNorm2d(8, affine=True, track_running_stats=True),),
    "frozen batch norm": lambda: (FrozenBatchNorm2d(8), nn.Conv2d(8, 6, 1), FrozenBatchNorm2d(6)),
    "weight norm": lambda: (parametrizations.weight_norm(nn.Conv2d(8, 6, 1)), nn.ReLU()),
    "spectral norm": lambda: (parametrizations.spectral_norm(nn.Conv2d(8, 6, 1)), nn.ReLU()),
    "older weight norm": lambda: (weight_norm(nn.Conv2d(8, 6, 1)), nn.ReLU()),
    "older spectral norm": lambda: (spectral_norm(nn.Conv2d(8, 6, 1)), nn.ReLU()),
    "one dimension": lambda: (nn.Flatten(2), nn.Conv1d(8, 6, 3, padding="same"), nn.Unflatten(2, (8, 8))),
    "three dimensions": lambda: (nn.Unflatten(3, (2, 4)), nn.Conv3d(8, 6, 3, padding="same"), nn.Flatten(3)),
    "three dimensions, valid": lambda: (nn.Unflatten(3, (2, 4)), nn.Conv3d(8, 6, (3, 1, 1)), nn.Flatten(3)),
    "as many groups as channels in each": lambda: (nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, groups=4)),
    "group norm of as many groups": lambda: (nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_follow_an_axis_leave_it_free(name: str) -> None:
    torch.manual_seed(0)
    layers = LAYERS[name]()
    given = nn.Sequential(nn.Conv2d(3, 8, 1), *layers)
    width = given.eval()(IMAGES).shape[1]
    axes, _ = proven(nn.Sequential(given, nn.Conv2d(width, 4, 1)))
    learnt = [layer for layer in layers if isinstance(layer, nn.modules.conv._ConvNd)]
    assert len(widths(axes)) >= 1 + len(learnt), {name: axis.frozen for name, axis in axes.items()}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(8, 6, batch_first=True),
        nn.RNN(8, 6, 2, nonlinearity="relu", bias=False, batch_first=True, bidirectional=True),
        nn.LSTM(8, 6, proj_size=3, batch_first=True),
        nn.LSTM(8, 6, 2, proj_size=3, batch_first=True, bidirectional=True),
        nn.GRU(8, 6, 2, batch_first=True),
    ],
)
def test_what_a_recurrent_layer_reads_can_shrink(layer: nn.RNNBase) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Conv2d(3, 8, 1), layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.first(x)[..., ::4, ::4].flatten(2).transpose(1, 2))[0]  # few steps: quick
            return y.mean(1)

    axes, _ = proven(Recurrent())
    assert widths(axes) == ["first"]


class One(nn.Module):
    """Has a batch of one written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu().flatten(2).mean(2)
        return self.head(y.view(1, -1))


def test_a_batch_of_one_may_be_written_into_the_code() -> None:
    axes, _ = proven(One(), IMAGES[:1])
    assert widths(axes) == ["first"]
    with pytest.raises(TraceError, match="cannot be captured"):
        trace(One(), IMAGES)


def test_a_refusal_is_one_message_with_the_line_of_the_code(capfd: pytest.CaptureFixture[str]) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))

    with pytest.raises(
        TraceError, match=r"at Branches \(test_forms.py:\d+\): what it does depends on the values"
    ) as refusal:
        trace(Branches(), IMAGES)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_code_without_a_source_is_frozen_where_it_cannot_be_expressed() -> None:
    made: dict[str, Any] = {"nn": nn}
    exec(
        "class Made(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)\n"
        "    def forward(self, x):\n"
        "        x = self.first(x).relu()\n"
        "        x = x.view(x.shape[0], 8, 8, 8)\n"
        "        return self.head(self.second(x).relu())\n",
        made,
    )
    axes, _ = proven(made["Made"]())
    assert widths(axes) == ["second"]
    axes, _ = proven(torch.fx.symbolic_trace(Meet(torch.add, 8)))
    assert set(widths(axes)) == {"one", "read"}


class Scaled(nn.Module):
    """Attention whose scale is computed where it is needed."""

    def __init__(self, scale: Callable[[nn.Module, Tensor], float]) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = 2, 8, scale
        self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((3, 16), (3, 16), (3, 16), (16, 4)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = (q @ k.transpose(-1, -2) * self.scale(self, q)).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "scale",
    [
        lambda _, q: q.shape[-1] ** -0.5,
        lambda own, _: own.head_dim**-0.5,
        lambda own, _: 1 / np.sqrt(own.head_dim),  # a subclass of float
    ],
)
def test_a_scale_that_code_computes_from_a_width_stays_the_dense_one(
    scale: Callable[[nn.Module, Tensor], float],
) -> None:
    axes, _ = proven(Scaled(scale))
    assert len(widths(axes)) == 3


def test_another_number_that_code_computes_from_a_width_freezes_it() -> None:
    axes, _ = proven(Meet(lambda a, b: (a + b) * a.shape[1] ** 0.5, 8))
    assert axes["one"].frozen == "the code of Meet computes a number from it"
    assert widths(axes) == ["read"]


class OneLine(nn.Module):
    """What cannot be expressed shares its line with three innocent layers; and self is called otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(this, x: Tensor) -> Tensor:
        return this.d(this.c(this.b(this.a(x)).relu()).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2))


class Slices(nn.Module):
    """The number in its code is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        width = 8
        return self.b(self.a(x)[:, :width])


def test_a_line_that_cannot_be_expressed_freezes_only_what_makes_it_so() -> None:
    axes, _ = proven(OneLine())
    assert set(widths(axes)) == {"a", "b"}
    assert str(axes["c"].frozen).startswith("the code of OneLine (test_forms.py:")
    axes = trace(Slices().eval(), IMAGES)
    assert {axis.frozen.split(":")[0] for axis in axes.values() if axis.frozen and "code" in axis.frozen} == {
        "the code of Slices (test_forms.py"
    }


class Softmax(nn.Module):
    """A softmax over channels hides the gate behind it; its input is made float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(torch.float32)).softmax(1))


def test_a_proof_is_neither_blind_behind_a_softmax_nor_stopped_by_code_that_makes_float32() -> None:
    model = Softmax().eval()
    axes = trace(model, IMAGES)
    proof = verify(model, axes, Arch.random(axes), IMAGES)
    assert max(proof.max_rel_error, proof.worst_node_error) <= 1e-9 < proof.control_error
    assert proof.tolerance == 1e-9


@torch.library.custom_op("nas_prune_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator of a user's own."""
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_rule_for_an_operator_of_ones_own_can_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(doubled(self.a(x)))

    frozen = trace(Own().eval(), IMAGES)["a"].frozen
    assert frozen == "no rule for operator doubled.default in the model"
    monkeypatch.setitem(RULES, "doubled.default", None)  # so that it is gone afterwards
    del RULES["doubled.default"]
    rule("doubled.default")(lambda walk, node: walk.of(node.args[0]))
    axes, _ = proven(Own())
    assert widths(axes) == ["a"]
