"""Modules that no graph can say: they are left as they are, and the rest of the model can shrink."""

from abc import abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_prune.base.errors import TraceError
from nas_prune.costs import count
from nas_prune.costs.counts import counted
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Odd(nn.Module):
    """A convolution of its own, and something that no graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        return self.odd(self.own(x))

    @abstractmethod
    def odd(self, x: Tensor) -> Any:
        """What no graph can say, of x."""


class Branching(Odd):
    """Asks for the values of a tensor."""

    def odd(self, x: Tensor) -> Tensor:
        return x.relu() if x.mean() > 0 else x.sigmoid()


class Looping(Odd):
    """As many steps as a tensor says."""

    def odd(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum()) % 3 + 1):
            x = x.tanh()
        return x


class Numpy(Odd):
    """Computes with numpy."""

    def odd(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class Selecting(Odd):
    """A size that values decide on."""

    def odd(self, x: Tensor) -> Tensor:
        return x + x[x > 0].mean()


ODD = (Branching, Looping, Numpy, Selecting)


class Around(nn.Module):
    """Widths before, beside and after an odd module, one of them of the model's own code."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.odd = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), odd
        self.third, self.weight, self.head = nn.Conv2d(8, 6, 3), nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.odd(self.second(self.first(x).relu()))
        y = y if isinstance(y, Tensor) else y["more"][0]
        return self.head((self.third(y).mean((2, 3)) @ self.weight.t()).relu())


def around(odd: nn.Module) -> nn.Module:
    """The model, with known weights."""
    torch.manual_seed(0)
    return Around(odd).eval()


@pytest.mark.parametrize("kind", ODD)
def test_what_no_graph_can_say_is_left_as_it_is_and_the_rest_can_shrink(kind: type[Odd]) -> None:
    model = around(kind())
    axes = trace(model, IMAGES)
    assert {"first", "weight", "weight:2"} == set(axes.free)
    for name in ("second", "odd.own"):
        assert str(axes[name].frozen).startswith(f"odd cannot be captured as a graph at {kind.__name__}")
    arch = Arch.random(axes, keep=0.5)
    proof = verify(model, axes, arch, IMAGES)
    assert proof.control_error > 1e-4
    small = derive(model, axes, arch)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), GatedModel(model, axes).eval().fixed(arch)(IMAGES))
    assert count(small, IMAGES) == counted(axes, arch.sizes(axes))
    assert "forward" not in vars(model.odd)


def test_a_leaf_may_be_called_twice_by_name_and_return_collections() -> None:
    class Several(Odd):
        def forward(self, x: Tensor, *, options: dict[str, Any] | None = None) -> dict[str, Any]:
            y = self.own(x) * (options or {"by": 1.0})["by"]
            return {"more": (y if y.sum() > 0 else -y, "a text", None), "count": 3}

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.several = Several()

        def forward(self, x: Tensor) -> Any:
            x = self.several(x)["more"][0]
            return self.several(x=x, options={"by": torch.tensor(2.0, dtype=x.dtype)})

    model = around(Twice())
    axes = trace(model, IMAGES)
    assert {leaf.path for leaf in axes.walk.captured.leaves} == {"odd.several"}
    assert len(axes.walk.captured.leaves) == 2
    verify(model, axes, Arch.random(axes), IMAGES)


def test_a_module_is_a_leaf_where_it_is_asked_for() -> None:
    model = around(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    assert "odd.0" in trace(model, IMAGES).free
    axes = trace(model, IMAGES, leaves=["odd"])
    assert axes["odd.0"].frozen == axes["second"].frozen == "odd is left as it is, as asked"
    assert {"first", "weight", "weight:2"} == set(axes.free)
    verify(model, axes, Arch.random(axes), IMAGES)
    with pytest.raises(TraceError, match=r"'odds' cannot be a leaf: .* did you mean 'odd'"):
        trace(model, IMAGES, leaves=["odds"])


def test_a_model_that_is_odd_itself_or_does_not_run_is_refused() -> None:
    class Whole(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    with pytest.raises(TraceError, match=r"Whole cannot be captured as a graph at Whole .* Check that"):
        trace(Whole(Branching()), IMAGES)
    with pytest.raises(TraceError, match="a part that does is left as it is, if it is a small module"):
        trace(nn.Sequential(Branching()), torch.randn(2, 8, 4, 4))
    model = around(Branching())
    model.odd.own = nn.Conv2d(5, 8, 1)
    with pytest.raises(TraceError, match=r"cannot be captured as a graph at Branching .*: RuntimeError: Given"):
        trace(model, IMAGES)
    with pytest.raises(TraceError, match=r"odd cannot be a leaf, .* not run with the example inputs: RuntimeError"):
        trace(model, IMAGES, leaves=["odd"])


def test_a_leaf_returns_tensors_in_collections() -> None:
    class Holder:
        def __init__(self, x: Tensor) -> None:
            self.more = [x]

        def __getitem__(self, _: str) -> list[Tensor]:
            return self.more

    class Returns(Odd):
        def odd(self, x: Tensor) -> Any:
            return Holder(x)

    model = around(Returns())
    with pytest.raises(TraceError, match="odd cannot be a leaf: it returns more than tensors"):
        trace(model, IMAGES, leaves=["odd"])
