"""Gates start open, follow the weights, learn, and never lose the last unit."""

from math import exp, log

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import apart, few, traced

from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import Gate, gates
from nas_prune.methods.gates.gate import HardStep
from nas_prune.methods.gates.hard_concrete import BETA, GAMMA, ZETA, HardConcrete
from nas_prune.methods.gates.mask import Mask
from nas_prune.methods.gates.sigmoid import Sigmoid
from nas_prune.methods.gates.weight import WeightGate
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

WEIGHTS = [torch.linspace(-2, 3, 12 * 18).reshape(12, 18).sin(), 5 + torch.linspace(0, 9, 12 * 4).reshape(12, 4).cos()]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("gate", gates.values())
def test_gates_start_open(gate: type[Gate]) -> None:
    made = gate(12, [18, 4])
    assert bool((made.score(WEIGHTS) >= 0).all())
    assert bool((made.eval()(WEIGHTS) > 0.9).all())
    assert made(WEIGHTS).shape == (12,)


def test_gates_of_a_backbone_start_open_and_inside_the_window() -> None:
    net = traced("resnet18")
    gated = GatedModel(net.fresh(), net.axes, "weight")
    assert gated.arch() == Arch.dense(net.axes)
    assert all(0 < float(z.min()) <= float(z.max()) < 1 for z in gated.scores().values())


def test_permuting_filters_permutes_gates() -> None:
    gate, order = WeightGate(12, [18, 4], init=0.0), torch.randperm(12)
    z = gate.score(WEIGHTS)
    assert z.unique().numel() == 12
    assert torch.allclose(gate.score([w[order] for w in WEIGHTS]), z[order], atol=1e-6)
    assert torch.equal(gate([w[order] for w in WEIGHTS]).detach(), gate(WEIGHTS)[order].detach())


def test_scores_do_not_see_the_scale_of_a_layer() -> None:
    gate = WeightGate(12, [18, 4])
    assert torch.allclose(gate.score([10 * w + 3 for w in WEIGHTS]), gate.score(WEIGHTS), atol=1e-4)


def test_a_score_and_its_gradient_are_those_of_the_formula() -> None:
    gate = WeightGate(12, [18, 4]).double()
    weights = [w.double().requires_grad_() for w in WEIGHTS]
    means, deviations = [w.mean().item() for w in weights], [w.std(correction=0).item() for w in weights]
    parts = zip(weights, means, deviations, gate.theta.values(), strict=True)
    plain = sum((w - mean) / deviation @ theta for w, mean, deviation, theta in parts) / 22**0.5 + gate.bias
    seen = [torch.autograd.grad(z.cos().sum(), [*weights, *gate.parameters()]) for z in (gate.score(weights), plain)]
    assert torch.allclose(gate.score(weights), plain)
    assert all(torch.allclose(mine, other) for mine, other in zip(*seen, strict=True))


@pytest.mark.parametrize("detach", [False, True])
def test_weights_are_moved_by_gates_only_where_asked(detach: bool) -> None:
    weight = WEIGHTS[0].clone().requires_grad_()
    gate = WeightGate(12, [18], detach_weights=detach)
    (gate([weight]) * torch.arange(12)).sum().backward()
    assert (weight.grad is None) == detach
    assert float(gate.theta["0"].grad.abs().sum()) > 0


@pytest.mark.parametrize("name", few(("test_resnet", "test_convnext", "test_vit"), ("test_resnet", "test_vit")))
@pytest.mark.parametrize(
    "gate", ["weight", "sigmoid"]
)  # a sample of a hard concrete gate may well be clipped: no gradient
def test_the_gradient_of_the_task_reaches_every_gate_at_init(name: str, gate: str) -> None:
    net = traced(name)
    model = net.double()  # a fresh model starts some branches at zero, and those tell a gate nothing
    gated = GatedModel(model.float(), net.axes, gate).train()
    F.cross_entropy(gated(net.images), torch.tensor([1, 2])).backward()
    silent = [n for n, p in gated.gates.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


def test_gradient_of_the_hard_step_is_the_triangle() -> None:
    z = torch.tensor([-2.0, -1.0, -0.5, -1e-6, 0.0, 0.25, 1.0, 3.0], requires_grad=True)
    step = HardStep.apply(z)
    assert step.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    (gradient,) = torch.autograd.grad((step * 3).sum(), z)
    assert torch.allclose(gradient, 3 * torch.tensor([0, 0, 0.5, 1, 1, 0.75, 0, 0]), atol=1e-5)


def test_a_leak_keeps_far_scores_alive_and_changes_no_value() -> None:
    z = torch.tensor([-3.0, 0.5], requires_grad=True)
    keep = WeightGate(2, [1], leak=0.1).open(z)
    assert keep.tolist() == [0, 1]
    (gradient,) = torch.autograd.grad(keep.sum(), z)
    assert torch.allclose(gradient, torch.tensor([0.1, 0.6]))


@pytest.mark.parametrize("gate", ["weight", "sigmoid", "hard_concrete", "mask"])
def test_the_floor_never_loses_the_last_unit(gate: str) -> None:
    net = traced("test_resnet")
    for space, least in ((SearchSpace.all(net.axes), 1), (SearchSpace.read("channels", net.axes), 2)):
        gated = GatedModel(net.fresh(), space, gate).eval()
        with torch.no_grad():
            for key, value in gated.gates.state_dict(keep_vars=True).items():
                value.mul_(0.1) if "theta" in key else value.fill_(0.0 if gate == "mask" else -9.0)
            kept, values = gated.arch().kept, gated.gate_values()
        for name, minimum in space.minimum.items():
            assert minimum >= least or (minimum == 0 and net.axes[name].kind == "depth")
            assert len(kept[name]) == minimum
            assert values[name][list(kept[name])].tolist() == [1] * minimum
            assert float(values[name].sum()) < minimum + 0.02 * len(values[name])


def test_a_cost_alone_drives_gates_to_the_floor_and_not_below() -> None:
    net = traced("test_vit")
    gated = GatedModel(net.fresh(), SearchSpace.read("channels", net.axes), "weight")
    optimizer = torch.optim.Adam(gated.gates.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        sum(keep.mean() for keep in gated.gate_values().values()).backward()
        optimizer.step()
    assert {name: len(units) for name, units in gated.arch().kept.items()} == dict(gated.space.minimum)


def test_hard_concrete_is_deterministic_in_eval_and_hits_both_ends() -> None:
    gate = HardConcrete(20000, [1], init=0.5)
    samples = gate([]).detach()
    # eq. 12 of the paper; four standard deviations of a share of 20000 samples are 0.014
    closed = 1 / (1 + exp(0.5 - BETA * torch.tensor(-GAMMA / ZETA).log().item()))
    assert float((samples == 0).float().mean()) == pytest.approx(closed, abs=0.014)
    assert 0 < float((samples == 1).float().mean()) < 1
    assert float(samples.min()) == 0
    assert float(samples.max()) == 1
    assert torch.equal(gate.eval()([]), gate([]))
    assert gate([])[0].item() == pytest.approx(1.2 / (1 + exp(-0.5)) - 0.1)
    assert gate.score([])[0].item() == pytest.approx(-torch.tensor(closed / (1 - closed)).log().item(), abs=1e-5)


@pytest.mark.parametrize("log_alpha", [-2.0, -1.0, 0.0, 1.0])
def test_a_budget_charges_hard_concrete_the_probability_that_a_unit_is_not_zero(log_alpha: float) -> None:
    net = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3))
    gated = GatedModel(net, trace(net, torch.randn(1, 4)), "hard_concrete").train()
    (name,) = gated.axes.free
    with torch.no_grad():
        gated.gate(name).logit.fill_(log_alpha)
    gated(torch.randn(2, 4))
    expected = 50 / (1 + exp(-(log_alpha - BETA * log(-GAMMA / ZETA))))  # eq. 12
    assert gated.sizes()[name].item() == pytest.approx(expected, rel=1e-5)
    with gated.fixed(Arch({name: range(7)})):
        gated(torch.randn(2, 4))
        assert gated.sizes()[name].item() == 7


def test_a_sigmoid_becomes_a_step_while_it_learns() -> None:
    gate, logits = Sigmoid(3, [9]), torch.tensor([-0.5, 0.3, 2.0])
    with torch.no_grad():
        gate.logit.copy_(logits)
    assert torch.allclose(gate([]), torch.sigmoid(logits))
    gate.advance(0.5)
    assert torch.allclose(gate([]), torch.sigmoid(logits / 0.1**0.5))
    gate.advance(1.0)
    assert torch.allclose(gate([]), torch.tensor([0.0, 1.0, 1.0]), atol=0.05)
    gate.advance(0.0)
    assert torch.allclose(gate([]), torch.sigmoid(logits))


def test_hard_concrete_moves_at_its_pace() -> None:
    slow, fast = HardConcrete(1, [1], init=3.0), HardConcrete(1, [1], init=3.0, pace=10.0)
    start = slow.score([]).item()
    assert fast.score([]).item() == pytest.approx(start)
    for gate in (slow, fast):
        optimizer = torch.optim.Adam(gate.parameters(), lr=0.01)
        gate.score([]).sum().backward()
        optimizer.step()
    assert slow.score([]).item() == pytest.approx(start - 0.01, abs=1e-4)
    assert fast.score([]).item() == pytest.approx(start - 0.1, abs=1e-4)


def test_sigmoid_starts_open_and_sharpens_with_temperature() -> None:
    assert float(Sigmoid(4, [1])([]).detach().min()) > 0.95
    assert float(Sigmoid(4, [1], init=-1.0, temperature=0.1)([]).detach().max()) < 1e-4
    assert Sigmoid(4, [1], init=0.0)([]).detach().tolist() == [0.5] * 4


def test_a_mask_does_what_it_says_and_learns_nothing() -> None:
    net = traced("test_resnet")
    gated, arch = GatedModel(net.fresh(), net.axes, "mask").eval(), net.random(0.5)
    with torch.no_grad():
        for (name, units), gate in zip(arch.kept.items(), gated.gates.values(), strict=True):
            assert isinstance(gate, Mask)
            gate.keep.zero_()[list(units)] = 1
            assert gated.space.axes[name].size == gate.size
        with gated.fixed(arch):
            expected = gated(net.images)
        assert torch.equal(gated(net.images), expected)
    assert gated.arch() == arch
    assert not list(gated.gates.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "densenet121"])
def test_arch_sizes_and_scores_say_the_same(name: str) -> None:
    net = traced(name)
    gated = GatedModel(net.fresh(), net.axes, "weight", options={"init": 0.0}).eval()
    with torch.no_grad():
        output = gated(net.images)
        arch, scores, sizes = gated.arch(), gated.scores(), gated.sizes()
        with gated.fixed(arch):
            assert apart(output, gated(net.images)) < 1e-6
    assert list(arch.kept) == list(scores) == list(sizes) == list(net.axes.free)
    assert arch != Arch.dense(net.axes)
    for axis, units in arch.kept.items():
        assert int(sizes[axis]) == len(units)
        opened = (scores[axis] >= 0).nonzero().flatten().tolist()
        assert list(units) == (opened or [int(scores[axis].argmax())])


@pytest.mark.parametrize(
    "name", few(["test_resnet", "test_vit", "mobilenetv2_050", "densenet121"], ("test_resnet", "densenet121"))
)
def test_row_u_of_the_weights_holds_what_belongs_to_unit_u(name: str) -> None:
    net = traced(name)
    gated = GatedModel(net.fresh(), net.axes)
    for axis in net.axes.free.values():
        for (tensor, dim, _), rows in zip(gated.writers[axis.name], gated.weights(axis.name), strict=True):
            assert rows.shape[0] == axis.size
            unit, term = axis.size // 2, net.axes.tensors[tensor][dim]
            others = net.axes.indices(term, Arch({axis.name: [u for u in range(axis.size) if u != unit]})).tolist()
            mine = torch.tensor([index for index in range(term.size) if index not in set(others)])
            entries = gated.backbone.get_parameter(tensor).index_select(dim, mine)
            assert torch.equal(entries.flatten().sort().values, rows[unit].sort().values)


def test_options_of_a_gate_reach_it() -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), net.axes, "weight", options={"leak": 0.25})
    assert {gate.leak for gate in gated.gates.values()} == {0.25}
    assert all(isinstance(gate, nn.Module) for gate in gated.gates.values())


class OntoTwo(nn.Module):
    """A residual branch that writes two widths at once, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.branch, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.two(x)], 1)
        return self.out((y + self.branch(y)).relu())


def test_of_a_weight_that_writes_two_axes_each_sees_its_own_rows() -> None:
    model = OntoTwo()
    gated = GatedModel(model, trace(model, torch.randn(2, 3, 4, 4)), "weight")
    (first, second) = (name for name, axis in gated.space.free.items() if axis.size == 4)
    rows = model.branch.weight.detach().flatten(1)
    for name, own in ((first, rows[:4]), (second, rows[4:])):
        assert any(weight.shape == own.shape and torch.equal(weight, own) for weight in gated.weights(name))
    gated.scale(first, torch.zeros(4))
    assert not model.branch.weight[:4].any()
    assert bool(model.branch.weight[4:].any(1).all())
