"""Stripes: every form computes the masked convolution, trains as it does, and the skeleton dies as its paper says."""

import copy
import io
import json
import warnings
from itertools import product
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import traced

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Conditions, count
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.gates.skeleton import Skeleton, SkeletonFilters
from nas_prune.methods.penalties import penalties
from nas_prune.ops import StripeConv, operations, stripe_macs
from nas_prune.ops.stripes.forms import forms
from nas_prune.run.stripe_forms import reform, take_forms

EXACT = 1e-12  # float64: the sums are the same, in another order
each_form = pytest.mark.parametrize("form", forms)


def conv_of(kernel: tuple[int, int] = (3, 3), channels: int = 3, **options: object) -> nn.Conv2d:
    """A convolution to 6 filters in float64."""
    return nn.Conv2d(channels, 6, kernel, dtype=torch.float64, **options)


def masked(conv: nn.Conv2d, alive: Tensor) -> nn.Conv2d:
    """The same convolution, its dead stripes zero."""
    result = copy.deepcopy(conv)
    with torch.no_grad():
        result.weight.mul_(alive[:, None])
    return result


def patterns(height: int, width: int) -> list[Tensor]:
    """Live stripes (6 h w): all, none, one, some, some but for two filters and an outer row, every second row."""
    full = torch.ones(6, height, width, dtype=torch.bool)
    one, some = torch.zeros_like(full), torch.rand(full.shape) < 0.4
    one[2, 0, width - 1] = True
    fewer, rows = some.clone(), full.clone()
    fewer[[1, 4]], fewer[:, -1:] = False, height == 1
    rows[:, 1::2] = False
    return [full, ~full, one, some, fewer, rows]


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite between shapes."""
    return float((got - expected).detach().abs().max()) if got.shape == expected.shape else float("inf")


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of even kernels
@each_form
@pytest.mark.parametrize("kernel", [(1, 3), (3, 3), (5, 5), (2, 2)])
def test_every_form_is_exact(form: str, kernel: tuple[int, int]) -> None:
    images = [torch.randn(2, 3, *size, dtype=torch.float64) for size in ((11, 12), (14, 9))]
    paddings = [0, 1 if kernel != (1, 3) else (0, 1), (0, 1), "same", "valid"]
    for case, (stride, dilation, padding) in enumerate(product((1, 2, 3, (2, 1)), (1, 2), paddings)):
        if padding == "same" and stride != 1:
            continue
        conv = conv_of(kernel, stride=stride, dilation=dilation, padding=padding, bias=padding == 1)
        for alive, x in zip(patterns(*kernel)[case % 2 :: 2], [*images, images[0]], strict=True):
            got, expected = StripeConv.of(conv, alive, form)(x), masked(conv, alive)(x)
            assert apart(got, expected) <= EXACT, (stride, dilation, padding, alive)


@each_form
def test_padding_wider_than_the_kernel_and_images_smaller(form: str) -> None:
    for padding, dilation, size in (((3, 2), 1, (1, 2)), ((4, 4), 2, (2, 1)), ((1, 1), 1, (1, 1))):
        conv = conv_of(padding=padding, dilation=dilation, stride=2)
        for alive in patterns(3, 3):
            x = torch.randn(1, 3, *size, dtype=torch.float64)
            assert apart(StripeConv.of(conv, alive, form)(x), masked(conv, alive)(x)) <= EXACT


@each_form
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_loop_of_the_paper(form: str, stride: int) -> None:
    conv, alive = conv_of(stride=stride, padding=1, bias=False), patterns(3, 3)[3]
    x = torch.randn(1, 3, 8, 7, dtype=torch.float64)
    got = StripeConv.of(conv, alive, form)(x)
    expected, weight = torch.zeros_like(got), conv.weight.detach()
    for (n, i, j), (y, z) in product(alive.nonzero().tolist(), product(range(got.shape[2]), range(got.shape[3]))):
        row, column = y * stride + i - 1, z * stride + j - 1
        if 0 <= row < 8 and 0 <= column < 7:
            expected[0, n, y, z] += weight[n, :, i, j] @ x[0, :, row, column]
    assert apart(got, expected) <= EXACT


def test_all_stripes_alive_change_no_bit() -> None:
    conv, x = nn.Conv2d(3, 6, 3, padding=1), torch.randn(2, 3, 9, 8)
    for form in ("dense", "cropped"):
        assert torch.equal(StripeConv.like(conv, form=form)(x), conv(x))


@each_form
def test_a_filter_without_live_stripes_is_its_bias(form: str) -> None:
    conv, alive = conv_of(padding=1), patterns(3, 3)[4]
    block = nn.Sequential(StripeConv.of(conv, alive, form), nn.BatchNorm2d(6, dtype=torch.float64))
    expected = nn.Sequential(masked(conv, alive), nn.BatchNorm2d(6, dtype=torch.float64))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(block[0](x)[:, 1], conv.bias[1].expand(2, 8, 8))
    assert apart(block(x), expected(x)) <= 1e-10  # a BatchNorm in training divides by sqrt(1e-5) where nothing varies
    assert apart(block.eval()(x), expected.eval()(x)) <= EXACT


@each_form
def test_only_live_stripes_are_stored_and_computed(form: str) -> None:
    for stride, size in ((1, (9, 8)), (2, (10, 9)), (2, (8, 7))):
        conv = nn.Conv2d(4, 6, 3, stride=stride, padding=1, bias=False)
        alive, x = patterns(3, 3)[3], torch.randn(2, 4, *size)
        counted, live = count(StripeConv.of(conv, alive, form), x), int(alive.sum())
        needed = stripe_macs(conv, alive, x.shape)
        assert needed * 54 == count(conv, x).macs * live
        assert counted.macs >= needed
        assert counted.macs == needed or form != "gathered"
        assert counted.params == 4 * live or form not in ("gathered", "shifted")
    crop = torch.zeros(6, 3, 3, dtype=torch.bool)
    crop[:, 1] = True
    small = StripeConv.of(conv, crop, form)
    assert count(small, x).params == 4 * 18 or form == "dense"
    assert count(small, x).macs == stripe_macs(conv, crop, x.shape) or form in ("dense", "shifted")


def trained(layer: nn.Module, x: Tensor, optimizer: type[torch.optim.Optimizer], mask: Tensor | None) -> Tensor:
    """The output after five steps of training with weight decay, dead gradients of a dense layer masked."""
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(layer.parameters(), lr=0.01, weight_decay=0.01, **options)
    for _ in range(5):
        steps.zero_grad()
        (layer(x) - 1).square().sum().backward()
        if mask is not None:
            layer.weight.grad *= mask[:, None]
        steps.step()
    return layer(x).detach()


@each_form
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_dead_stripes_stay_dead_and_the_others_train_alike(form: str, optimizer: type[torch.optim.Optimizer]) -> None:
    conv, x = conv_of(padding=1, stride=2), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    for alive in patterns(3, 3)[2:]:
        stripes, dense = StripeConv.of(conv, alive, form), masked(conv, alive)
        before = dense(x).detach()
        got, expected = trained(stripes.eval(), x, optimizer, None), trained(dense, x, optimizer, alive)
        assert apart(got, expected) <= 1e-10  # five steps of rounding
        assert apart(before, expected) > 1e-3


@each_form
def test_gradients_reach_the_input(form: str) -> None:
    conv, alive = conv_of(padding=1, stride=2), patterns(3, 3)[3]
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(layer(x).sin().sum(), x)[0]
        for layer in (StripeConv.of(conv, alive, form), masked(conv, alive))
    ]
    assert apart(*slopes) <= EXACT


@each_form
def test_it_is_built_again_from_plain_data(form: str) -> None:
    conv, x = nn.Conv2d(3, 6, 3, padding="same"), torch.randn(2, 3, 9, 8)
    for alive in patterns(3, 3):
        made = StripeConv.of(conv.eval(), alive, form)
        state = io.BytesIO()
        torch.save(made.state_dict(), state)
        state.seek(0)
        again = operations["stripe_conv"](**json.loads(json.dumps(made.config)))
        again.load_state_dict(torch.load(state, weights_only=True))
        assert torch.equal(again.eval()(x), made(x))
        assert torch.equal(made.state_dict()["alive"], alive)
        assert torch.equal(copy.deepcopy(again)(x), made(x))
        with torch.device("meta"):
            rehearsed = operations["stripe_conv"](**made.config)
        assert {k: v.shape for k, v in rehearsed.state_dict().items()} == {k: v.shape for k, v in state_of(made)}
        assert not made.training


def state_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors."""
    return list(module.state_dict().items())


class Every(nn.Module):
    """All forms of some convolutions."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        alive = patterns(3, 3)[4]
        convs = [nn.Conv2d(3, 6, 3, stride=stride, padding=1) for stride in strides]
        self.layers = nn.ModuleList(StripeConv.of(conv, alive, form) for conv, form in product(convs, forms))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


def test_every_form_is_exported_for_any_batch() -> None:
    model, x = Every(2).eval(), torch.randn(2, 3, 9, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=1)},), strict=False)
    for got, expected in zip(program.module()(x[:1]), model(x[:1]), strict=True):
        assert apart(got, expected) <= 1e-6


@pytest.mark.parametrize("newer", [False, True])
def test_every_form_is_exported_to_onnx(newer: bool) -> None:
    model, x, file = (Every(2) if newer else Every(1, 2)).eval(), torch.randn(2, 3, 9, 8), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the older exporter says that it is older
        program = torch.onnx.export(model, (x,), None if newer else file, dynamo=newer, verbose=False)
    content = program.model_proto.SerializeToString() if newer else file.getvalue()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for got, expected in zip(outputs, model(x), strict=True):
        assert apart(torch.from_numpy(got), expected.detach()) <= 1e-5


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_the_fastest_form_is_the_one_that_took_least(runtime: str) -> None:
    conv, x = nn.Conv2d(128, 128, 3, padding=1, bias=False), torch.randn(1, 128, 28, 28)
    alive = torch.zeros(128, 3, 3, dtype=torch.bool)
    alive[:, 1, 1] = True
    alive[0, 0, 0] = alive[1, 2, 2] = True
    model = nn.Sequential(StripeConv.of(conv, alive), nn.ReLU())
    with torch.no_grad():
        expected = model(x)
        (row,) = reform(model, x, Conditions(runtime, 1), seconds=0.02)
        assert apart(model(x), expected) <= 1e-5
    assert list(row["ms"]) == list(forms)
    assert row["ms"][row["form"]] == min(row["ms"].values())
    assert row["form"] != "dense"  # a ninth of the work: far beyond what noise could hide
    again = nn.Sequential(StripeConv.of(conv, alive), nn.ReLU())
    take_forms(again, [row])
    assert again[0].config == model[0].config


def test_what_has_no_stripes_is_refused() -> None:
    alive = torch.ones(6, 3, 3, dtype=torch.bool)

    class Other(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for conv in (nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(3, 6, 3, padding_mode="reflect"), Other(3, 6, 3)):
        with pytest.raises(SpaceError, match="no stripes"):
            StripeConv.of(conv, alive)
    for wrong in (alive[:5], alive.float()):
        with pytest.raises(SpaceError, match="bool tensor of shape"):
            StripeConv.of(nn.Conv2d(3, 6, 3), wrong)
    with pytest.raises(SpaceError, match="did you mean 'gathered'"):
        StripeConv.of(nn.Conv2d(3, 6, 3), alive, "gatherd")
    with pytest.raises(SpaceError, match="Linear has no stripes"):
        StripeConv.like(nn.Linear(3, 6))


def skeleton_loss(weight: Tensor, keep: Tensor, x: Tensor) -> Tensor:
    """A loss of a convolution whose stripes are multiplied with a skeleton."""
    return F.conv2d(x, weight * keep.reshape(len(weight), 1, 3, 3), padding=1).sin().square().mean()


def test_the_gradient_of_a_skeleton_is_that_of_its_stripe() -> None:
    gate, x = Skeleton(54, [3]).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        gate.skeleton.copy_(torch.linspace(-1, 1.5, 54))
    skeleton_loss(weight, gate([]), x).backward()
    expected = (weight.grad * weight).sum(1).flatten()
    dead = gate.skeleton.abs() <= 0.05
    assert 0 < int(dead.sum()) < 5
    assert apart(gate.skeleton.grad * gate.skeleton, expected) <= EXACT
    assert not bool(gate.skeleton.grad[dead].any())


def test_a_skeleton_lives_and_dies_as_in_the_paper() -> None:
    weight, x = torch.randn(6, 3, 3, 3, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alpha, delta = 0.5, 0.3
    gate, penalty = Skeleton(54, [3], threshold=delta).double(), penalties["skeleton"](None, alpha=alpha)
    gated = SimpleNamespace(gates=nn.ModuleDict({"stripes": gate}))
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.2)
    shares = []
    for _ in range(9):
        skeleton = gate.skeleton.detach().clone()  # each step from where the gate is: rounding grows from step to step
        optimizer.zero_grad()
        (50 * skeleton_loss(weight, gate([]), x) + penalty(gated)).backward()
        optimizer.step()
        alive = [abs(float(value)) > delta for value in skeleton]
        skeleton = (skeleton * torch.tensor(alive)).requires_grad_()
        (slope,) = torch.autograd.grad(50 * skeleton_loss(weight, skeleton, x), skeleton)
        moved = []
        for value, gradient, lives in zip(skeleton.tolist(), slope.tolist(), alive, strict=True):
            sign = (value > 0) - (value < 0)
            moved.append(value - 0.2 * (gradient + alpha * sign) if lives else value)
        skeleton = torch.tensor(moved, dtype=torch.float64)
        expected = skeleton * (skeleton.abs() > delta)
        assert apart(gate([]).detach(), expected) <= EXACT
        assert torch.equal(gate.score([]) >= 0, expected != 0)
        shares.append(float((expected != 0).double().mean()))
    assert 0 < shares[-1] < shares[2] <= 1


def test_the_penalty_is_the_sum_of_what_lives() -> None:
    net = traced("test_resnet")
    axes = trace(net.model, net.images, stripes=True)
    gated, penalty = GatedModel(net.fresh(), axes, "skeleton"), penalties["skeleton"](None, alpha=0.5)
    units = sum(axis.size for axis in axes.free.values() if axis.kind == "stripe")
    assert penalty(gated).item() == 0.5 * units
    gate = next(gate for gate in gated.gates.values() if isinstance(gate, Skeleton))
    with torch.no_grad():
        gate.skeleton[:3] = torch.tensor([-2.0, 0.04, -0.03])
    value = penalty(gated)
    value.backward()
    assert value.item() == 0.5 * (units - 3 + 2)
    assert gate.skeleton.grad[:4].tolist() == [-0.5, 0, 0, 0.5]
    with pytest.raises(SpaceError, match="skeleton"):
        penalty(GatedModel(net.fresh(), net.axes, "weight"))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_momentum_does_not_bring_back_the_dead(optimizer: type[torch.optim.Optimizer]) -> None:
    gate = gates["skeleton"](2, [1], threshold=0.5)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(gate.parameters(), lr=0.3, **options)
    for _ in range(8):
        steps.zero_grad()
        (gate([])[0] * 1.0 + gate([])[1] * 0).backward()
        steps.step()
        gate([])
    assert gate.skeleton[0].item() < -0.5, "the momentum did not go on: nothing was tried"
    assert gate.eval()([]).tolist() == [0, 1]
    assert gate.score([]).tolist() == pytest.approx([-0.5, 0.5])
    again = gates["skeleton"](2, [1], threshold=0.5)
    again.load_state_dict(gate.state_dict())
    assert again([]).tolist() == [0, 1]


def test_a_filter_lives_while_a_stripe_does() -> None:
    first, second = torch.zeros(4, 9), torch.zeros(4, 1)
    first[0, 3], first[1, 8], first[3, :] = 0.2, -0.9, 0.04
    second[2] = -0.06
    rows = [first.requires_grad_(), second.requires_grad_()]
    gate = SkeletonFilters(4, [9, 1])
    assert gate.score(rows).tolist() == pytest.approx([0.15, 0.85, 0.01, -0.01])
    assert gate(rows).tolist() == [1, 1, 1, 0]
    slopes = torch.autograd.grad(gate(rows).sum(), rows)
    assert slopes[0][0].nonzero().flatten().tolist() == [3]
    assert slopes[0][1, 8].item() == pytest.approx(-0.15)
    assert slopes[1].flatten().tolist() == pytest.approx([0, 0, -0.99, 0])
    assert not bool(slopes[0][3].any())
