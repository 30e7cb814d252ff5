"""Laws of joint limits and of memory: the tightest limit counts, and the peak is what is really alive at once."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import few, traced

from nas_prune.base.errors import RecipeError
from nas_prune.costs import Budget, CostModel, LatencyPredictor, Limits, Macs, Memory, Params, costs
from nas_prune.costs.batched import batched
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

FLOAT = 4  # bytes


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.read("channels", traced("test_resnet").axes)


def columns_of(space: SearchSpace, count: int = 6) -> dict[str, Tensor]:
    """Random integer sizes (b) per axis."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(space.minimum[name], axis.size + 1, (count,), generator=generator).double()
        for name, axis in space.free.items()
    }


class Once(CostModel):
    """A cost that can only be asked for one architecture at a time."""

    unit = "units"

    def __call__(self, sizes):
        assert all(isinstance(size, float) for size in sizes.values())
        return torch.tensor(sum(sizes.values()))


@pytest.mark.parametrize("kind", ["params", "macs", "memory", "latency", "limits", "once"])
def test_many_architectures_cost_what_each_of_them_costs(space: SearchSpace, kind: str) -> None:
    full = {name: axis.size for name, axis in space.free.items()}
    made = {"latency": lambda: LatencyPredictor(full, 3.0), "once": Once, "limits": lambda: limits_of(space)}
    cost = made[kind]() if kind in made else costs[kind](space.axes)
    columns = columns_of(space)
    together = batched(cost, columns)
    rows = [{name: float(column[row]) for name, column in columns.items()} for row in range(6)]
    assert together.dtype == torch.float64
    assert together.tolist() == pytest.approx([float(cost(row).detach()) for row in rows], rel=1e-5)
    assert kind in ("once", "latency") or len(set(together.tolist())) == 6


def limits_of(space: SearchSpace) -> Limits:
    """MACs to a half, parameters to a million."""
    return Limits([Budget("0.5x", Macs(space.axes)), Budget("1M", Params(space.axes))])


def test_the_tightest_limit_counts_and_those_that_are_exceeded_are_named(space: SearchSpace) -> None:
    macs, params = Macs(space.axes), Params(space.axes)
    dense = float(params({}))
    limits = Limits([Budget("0.5x", macs), Budget(str(2 * dense), params)])
    assert float(limits({})) == pytest.approx(2.0)
    assert limits.violated({}) == [
        f"{float(macs({})):.4g} MACs is 2x the limit of {0.5 * float(macs({})):.4g} MACs",
    ]
    both = Limits([Budget("0.5x", macs), Budget("0.25x", params)])
    assert float(both({})) == pytest.approx(4.0)
    assert [line.split()[1] for line in both.violated({})] == ["MACs", "parameters"]
    assert both.violated(space.minimum) == []
    assert float(both(space.minimum)) < 1
    assert Budget("1", both).limit == 1.0
    with pytest.raises(RecipeError, match="at least one budget"):
        Limits([])


def test_the_gradient_is_that_of_the_tightest_limit(space: SearchSpace) -> None:
    macs, params = Macs(space.axes), Params(space.axes)
    sizes = {name: torch.tensor(axis.size / 2, requires_grad=True) for name, axis in space.free.items()}
    limits = Limits([Budget("0.9x", macs), Budget("0.01x", params)])
    got = torch.autograd.grad(limits(sizes), list(sizes.values()), allow_unused=True)
    expected = torch.autograd.grad(params(sizes) / (0.01 * float(params({}))), list(sizes.values()), allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


class Chain(nn.Module):
    """5 -> 8 -> 6 -> 3, with a view and a sum over two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.tanh(y).reshape(len(y), -1)
        return self.last(torch.relu(self.second(y)))


@pytest.mark.parametrize("batch", [1, 4])
def test_the_peak_of_a_chain_by_hand(batch: int) -> None:
    axes = trace(Chain(), torch.randn(batch, 5))
    cost = Memory(axes)
    assert cost.unit == "bytes"

    def by_hand(a: int, b: int) -> int:
        held = 5 * a + a + a * b + b + 3 * b + 3 + batch * 5  # parameters, and the images
        return FLOAT * (held + batch * max(a + a, a + b, b + b, b + 3))  # what a node reads and what it makes

    for a, b in [(8, 6), (8, 1), (2, 6), (1, 1), (3, 2)]:
        assert float(cost({"first": a, "second": b})) == by_hand(a, b)
    assert float(cost({})) == by_hand(8, 6)


def test_memory_moves_the_sizes_and_never_grows_when_a_unit_goes(space: SearchSpace) -> None:
    cost = Memory(space.axes)
    sizes = {name: torch.tensor(float(axis.size), requires_grad=True) for name, axis in space.free.items()}
    cost(sizes).backward()
    assert all(size.grad is not None and float(size.grad) > 0 for size in sizes.values())
    for name, axis in space.free.items():
        assert float(cost({name: axis.size - 1})) < float(cost({}))


class Storages(TorchDispatchMode):
    """Bytes of all storages that are alive, after every operator; ``peak`` is the most."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()
        self.alive = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in held}
        self.peak = sum(self.alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


@contextmanager
def counted(model: nn.Module, images: Tensor) -> Iterator[Storages]:
    with torch.no_grad(), Storages([*model.parameters(), *model.buffers(), images]) as storages:
        yield storages


@pytest.mark.parametrize(
    "name",
    few(
        [
            "test_resnet",
            "mobilenetv2_050",
            "densenet121",
            "resnetv2_standardized",
            "test_convnext",
            "test_vit",
        ]
    ),
)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_peak_is_what_an_eager_run_allocates(name: str, keep: float) -> None:
    net = traced(name)
    arch = net.random(keep) if keep < 1 else Arch.dense(net.axes)
    small = derive(net.fresh(), net.axes, arch)
    with counted(small, net.images) as storages:
        small(net.images)
    held = sum(FLOAT * each.numel() for each in (*small.parameters(), *small.buffers()))
    predicted = float(Memory(net.axes)(arch.sizes(net.axes.free)))
    # of the activations alone: Python holds a module's input while the module runs, and torch works in place at times
    ratio = (predicted - held) / (storages.peak - held)
    assert 0.75 < ratio < 1.2, f"{ratio:.3f}"
