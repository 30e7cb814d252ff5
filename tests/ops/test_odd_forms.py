"""Operators in forms that are seldom written; code that draws numbers, counts images or holds tensors of its own."""

import functools
from collections.abc import Callable

import pytest
import torch
from ops.test_forms import proven, widths
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import DeriveError, ExactnessError, TraceError
from nas_prune.costs import count
from nas_prune.costs.counts import counted
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.tracing.arch import Arch

ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
HELD = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


class Between(nn.Module):
    """A function between two layers: (b 8) -> (b 8)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


PASSES = {
    "dropout that is left on": F.dropout,
    "a dropout that is made on the way": lambda x: nn.Dropout(0.3)(x),
    "a copy that is written into": lambda x: torch.empty_like(x).copy_(x),
    "a number of the same kind": lambda x: x + x.new_ones(()) + x.new_zeros(len(x), 1),
}
STAYS = {
    "roll": (lambda x: x.roll(3), "reordered by roll.default"),
    "std": (lambda x: x / x.std(), "read as a whole by std.correction"),
    "scatter": (lambda x: x.scatter(-1, torch.tensor([[1, 2, 3]]), x), "looked up by scatter.src"),
    "vector": (lambda x: F.linear(x, torch.ones(8))[:, None] + x, "no rule for this form of operator linear.default"),
}


@pytest.mark.parametrize("form", PASSES)
def test_what_passes_an_odd_form_is_an_axis(form: str) -> None:
    axes, small = proven(Between(PASSES[form]), ROWS)
    assert widths(axes) == ["first"]
    assert small.get_submodule("first").out_features == 4


@pytest.mark.parametrize("form", STAYS)
def test_what_an_odd_form_reads_as_a_whole_stays(form: str) -> None:
    function, why = STAYS[form]
    axes = trace(Between(function).eval(), ROWS)
    assert axes.free == {}
    assert str(axes["first"].frozen).startswith(why)


def test_a_bias_may_be_anything_that_can_be_added() -> None:
    model = Between(F.relu)
    model.first.bias = nn.Parameter(torch.randn(1, 8))
    axes, small = proven(model, ROWS)
    assert widths(axes) == ["first"]
    assert small.get_submodule("first").bias.shape == (1, 4)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_image_without_a_batch_is_convolved_as_many_are(groups: int) -> None:
    layers = [nn.ConvTranspose2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 6, 3, groups=groups), nn.InstanceNorm2d(6), nn.Conv2d(6, 4, 1))
    image = torch.randn(4, 12, 12)
    axes, small = proven(model, image)
    assert widths(axes)
    assert count(small, image).params < count(model, image).params
    assert counted(axes, {}) == count(model, image)


class Attends(nn.Module):
    """Attention whose queries come as they are asked for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.packed, self.last = how, nn.Linear(6, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x[None])
        q, k, v = packed[..., :8], packed[..., 8:16], packed[..., 16:]
        if self.how == "with dropout":
            return self.last(F.scaled_dot_product_attention(q, k, v, None, 0.3))
        if self.how == "with an empty piece":  # as rotary embeddings leave the tokens before the patches, if any
            q, k = (torch.cat([each[..., :0, :], each[..., 0:, :]], -2) for each in (q, k))
        if self.how == "as keys":
            return self.last(F.scaled_dot_product_attention(q, q, v))
        if self.how == "from images":
            q, k, v = self.packed(x.expand(3, -1, -1))[..., :8].unbind(0)
            return self.last(F.scaled_dot_product_attention(q[None], k[None], v[None]))
        y = self.last(F.scaled_dot_product_attention(q, k, v))
        return y if self.how == "with an empty piece" else y + packed.mean(-1, keepdim=True)


def test_an_attention_may_leave_its_dropout_on() -> None:
    axes, _ = proven(Attends("with dropout"), ROWS)
    assert {axes[name].kind for name in widths(axes)} == {"head_dim"}


def test_a_piece_of_the_queries_may_be_empty() -> None:
    axes, _ = proven(Attends("with an empty piece"), ROWS)
    assert {axes[name].kind for name in widths(axes)} == {"head_dim"}


@pytest.mark.parametrize("how", ["as keys", "from images", "by a mean"])
def test_queries_that_something_else_reads_cannot_carry_the_scale(how: str) -> None:
    model = Attends(how).eval()
    axes = trace(model, ROWS)
    frozen = [axis.frozen for axis in axes.values() if axis.frozen and "something else reads them, too" in axis.frozen]
    assert frozen
    if axes.free:
        verify(model, axes, Arch.random(axes), ROWS)


def test_queries_may_be_seen_through_any_view() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x).view(-1).view(1, 3, -1), self.k(x)[None], self.v(x)[None]
            return self.last(F.scaled_dot_product_attention(q, k, v))

    axes, _ = proven(Viewed(), ROWS)
    assert {axes[name].kind for name in widths(axes)} == {"head_dim"}


def test_code_that_counts_its_images_is_tried_with_as_many() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x).relu()).relu().reshape(3, 5)[2])

    axes, small = proven(Counting(), ROWS)
    assert widths(axes) == ["first", "second"]
    assert small(ROWS).shape == (4,)


def test_code_may_ask_for_the_third_image() -> None:
    axes, small = proven(Between(lambda x: x[[2, 0]]), ROWS)
    assert widths(axes) == ["first"]
    assert small(ROWS).shape == (2, 4)


def test_a_model_may_write_into_what_it_is_given() -> None:
    class Writing(Between):
        def forward(self, xs: list[Tensor]) -> Tensor:
            xs.append(super().forward(xs[-1].mul_(2)))
            return xs[-1]

    given = [ROWS.double()]
    axes, _ = proven(Writing(F.relu), (given,))
    assert widths(axes) == ["first"]
    assert torch.equal(torch.stack(given), ROWS.double()[None])


def test_an_axis_may_be_written_by_a_vector() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spread, self.last = nn.Parameter(torch.randn(8)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x[:, :1] * self.spread)

    axes, small = proven(Spread(), ROWS)
    assert widths(axes) == ["spread"]
    assert small.get_parameter("spread").shape == (4,)


@pytest.mark.parametrize("number", [lambda x: (x > 0).sum(1) / x.size(1), lambda x: torch.tensor([x.size(0)]) / 3])
def test_whole_numbers_are_divided_in_float64_too(number: Callable[[Tensor], Tensor]) -> None:
    class Divided(Between):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(number(x).reshape(-1, 1).expand(len(x), 6))

    axes, _ = proven(Divided(F.relu), ROWS)
    assert widths(axes) == ["first"]


def test_tensors_that_code_holds_need_not_be_buffers() -> None:
    class Holding(Between):
        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(super().forward(x), HELD)

    axes, _ = proven(Holding(F.relu), ROWS)
    assert widths(axes) == ["first"]
    with pytest.raises(DeriveError, match="Holding itself, with all its units, does not run on zeros"):
        derive(Holding(F.relu).double(), axes, Arch.random(axes))


def test_a_parameter_may_be_kept_as_a_buffer() -> None:
    class Shifted(Between):
        def __init__(self) -> None:
            super().__init__(F.relu)
            self.register_buffer("shift", nn.Parameter(torch.randn(6)))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.shift)

    axes, _ = proven(Shifted(), ROWS)
    assert widths(axes) == ["first"]


def test_a_model_without_parameters_has_no_axes_and_is_derived_as_it_is() -> None:
    model = nn.Sequential(nn.ReLU())
    axes = trace(model, ROWS)
    assert dict(axes) == {}
    assert torch.equal(derive(model, axes, Arch({}))(ROWS), model(ROWS))


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    class Silent(Between):
        def forward(self, x: Tensor) -> None:
            super().forward(x)

    with pytest.raises(TraceError, match="Silent returns no tensor in evaluation, but NoneType"):
        trace(Silent(F.relu), ROWS)


@pytest.mark.parametrize(
    ("function", "why"),
    [(lambda x: 0 * x / 0, "computes NaN, gated or not"), (torch.sqrt, "computes NaN, gated or not")],
)
def test_what_is_not_a_number_is_not_compared(function: Callable[[Tensor], Tensor], why: str) -> None:
    model = Between(function).eval()
    axes = trace(model, ROWS)
    with pytest.raises(ExactnessError, match=why):
        verify(model, axes, Arch.random(axes), ROWS)


def test_a_weight_that_is_not_a_number_is_named() -> None:
    model = Between(F.relu).eval()
    axes = trace(model, ROWS)
    with torch.no_grad():
        model.first.weight[:, 0] = torch.nan
    with pytest.raises(ExactnessError, match=r"node linear of the graph computes NaN.*first\.weight holds NaN"):
        verify(model, axes, Arch.random(axes), ROWS)


def test_a_graph_that_float64_cannot_run_says_so() -> None:
    class Quantized(Between):
        def forward(self, x: Tensor) -> Tensor:
            scaled = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()
            return super().forward(scaled)

    model = Quantized(F.relu).eval()
    axes = trace(model, ROWS)
    with pytest.raises(ExactnessError, match="does not run in float64"):
        verify(model, axes, Arch.random(axes), ROWS)


class Sized(nn.Module):
    """Attention that cuts queries, keys and values by one number, of which each line knows but its own."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 8
        self.query, self.key, self.value, self.last = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.size)
        q = self.query(x).view(*shape).transpose(1, 2)
        k = self.key(x).view(*shape).transpose(1, 2)
        v = self.value(x).view(*shape).transpose(1, 2)
        return self.last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1))


def decorated(method: Callable[..., Tensor], *, known: bool) -> Callable[..., Tensor]:
    """A method inside another, which says so or does not."""

    def around(*values: object) -> Tensor:
        return method(*values)

    return functools.wraps(method)(around) if known else around


@pytest.mark.parametrize("known", [True, False])
def test_a_number_that_several_axes_set_is_found_inside_a_decorator_or_stops_them(known: bool) -> None:
    class Decorated(Sized):
        forward = decorated(Sized.forward, known=known)

    axes = trace(Decorated().eval(), torch.randn(2, 3, 32))
    assert bool(widths(axes)) is known
    if known:
        proven(Decorated(), torch.randn(2, 3, 32))
