"""The laws, over every backbone of the zoo and every registered gate: identity, exactness, counting, citizenship."""

import copy
from importlib import import_module
from importlib.util import find_spec
from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from users import READERS, Mappings
from zoo import USERS, ChannelSum, Tied, Traced, Unused, apart, classifier_width, few, traced, traced_model

import nas_prune
from nas_prune.base.errors import ArchError, DeriveError, TraceError
from nas_prune.costs import Macs, Params, count
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.intercept import Interceptor, release
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.oracle import compare

EXACT = 1e-9  # float64: rounding leaves about 1e-14, the smallest real mistake seen (an attention scale) 7e-5
SINGLE = 1e-4  # float32


def both(gated: GatedModel, arch: Arch, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of the gated model, and of the derived one."""
    small = derive(gated.backbone, gated.axes, arch)
    with torch.no_grad(), gated.fixed(arch):
        return gated(images), small(images)


def kept_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss to all parameters of a model."""
    model.zero_grad()
    F.cross_entropy(model(images), torch.arange(len(images)) % 3).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


BLIND = [name for name, kind in gates.items() if not kind.looks]  # one that looks at images starts as it is drawn


@pytest.mark.parametrize("gate", few(BLIND, ("mask", "weight", "sigmoid")))
def test_identity(net: Traced, gate: str) -> None:
    model = net.fresh()
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = model(net.images)
        gated = GatedModel(model, net.axes, gate).eval()
        opened = all(bool((keep == 1).all()) for keep in gated.gate_values().values())
        with gated.fixed(Arch.dense(net.axes)):
            assert torch.equal(gated(net.images), expected)
        assert list(gated.backbone.state_dict()) == keys
        assert opened == (gate not in ("sigmoid", "softmax", "shapley")), "only a sigmoid is never fully open"
        assert not opened or torch.equal(gated(net.images), expected)
        assert torch.equal(gated.plain()(net.images), expected)


def test_exactness(net: Traced) -> None:
    gated, images = GatedModel(net.double(), net.axes).eval(), net.images.double()
    with torch.no_grad():
        dense = gated(images)
    for keep in (0.25, 0.5, 0.75):
        for seed in (0, 1):
            expected, got = both(gated, net.random(keep, seed), images)
            assert apart(expected, got) <= EXACT
            assert apart(dense, expected) > 1e-4, "nothing was closed, so nothing was compared"


def test_exactness_of_depth_alone_and_with_widths(net: Traced) -> None:
    gated, images = GatedModel(net.double(), net.axes).eval(), net.images.double()
    depth = [axis for axis in net.axes.free.values() if axis.kind == "depth"]
    for keep, bits in ((1.0, 0.5), (0.5, 0.5), (0.5, 0.0)) if depth else ():
        expected, got = both(gated, net.random(keep, bits=bits), images)
        assert apart(expected, got) <= EXACT
    skips = {"BasicBlock", "PreActBasic", "ConvNeXtBlock", "Block", "SwinTransformerBlock", "GhostBottleneck"}
    assert depth or not skips & {type(module).__name__ for module in net.model.modules()}


def test_exactness_in_float32(net: Traced) -> None:
    expected, got = both(GatedModel(net.fresh(), net.axes).eval(), net.random(0.5), net.images)
    assert apart(expected, got) <= SINGLE


def test_exactness_of_one_unit_per_axis(net: Traced) -> None:
    gated = GatedModel(net.double(), net.axes).eval()
    if net is traced("resnetv2_standardized"):  # torch has no variance of one number: a 1x1 filter of one input
        with pytest.raises(DeriveError):
            derive(gated.backbone, net.axes, net.single())
        return
    expected, got = both(gated, net.single(), net.images.double())
    assert apart(expected, got) <= EXACT


def test_every_node_of_the_graph_agrees_and_no_gate_is_idle(net: Traced) -> None:
    model, arch = net.double(), net.random(0.5)
    report = compare(net.axes, arch, model.state_dict(), net.images)
    assert report.worst_error <= EXACT
    assert report.nodes > 10
    closed = net.random(0.5, bits=0.0)
    for missing in {(site.how, site.node.target): site for site in net.axes.walk.sites}.values():
        control = compare(net.axes, closed, model.state_dict(), net.images, without=missing)
        assert control.worst_error > 1e-6, f"blind without the gate of {net.axes.walk.where(missing.node)}"


def test_a_missing_gate_shows_in_the_eager_model(net: Traced) -> None:
    gated, images = GatedModel(net.double(), net.axes).eval(), net.images.double()
    gated_types = {}
    for name, module in gated.backbone.named_modules():
        if any(isinstance(getattr(hook, "__self__", None), Interceptor) for hook in module._forward_hooks.values()):
            gated_types[type(module)] = name
    assert gated_types
    for name in gated_types.values():
        broken = copy.deepcopy(gated)
        release(broken.backbone.get_submodule(name))
        found = [apart(*both(broken, arch, images)) for arch in (net.random(0.5), net.random(0.5, bits=0.0))]
        assert max(found) > 1e-8, f"blind without the gates of {name}"


def test_gradients_of_kept_parameters_agree(net: Traced) -> None:
    model, arch = net.double().train(), net.random(0.5)
    images = torch.randn(6, *net.images.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    small, gated = derive(model, net.axes, arch), GatedModel(model, net.axes).train()
    assert all(module.training for module in small.modules())
    with gated.fixed(arch):
        whole = kept_gradients(gated, images)
    scales = [1.0, *(sqrt(len(arch.kept[n]) / a.size) for n, a in net.axes.free.items() if a.kind == "head_dim")]
    largest = max(float(g.abs().max()) for g in whole.values())
    for name, got in kept_gradients(small, images).items():
        dims = net.axes.tensors[name]
        folded = small.get_parameter(name).detach() / net.axes.take(model.get_parameter(name).detach(), dims, arch)
        assert all(any(abs(value - scale) < 1e-12 for scale in scales) for value in folded.unique().tolist())
        expected = net.axes.take(whole[f"backbone.{name}"], dims, arch)
        assert float((got * folded - expected).abs().max()) <= EXACT * largest, name


def test_counting(net: Traced) -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(2):
        widths = {n: int(torch.randint(1, a.size + 1, (), generator=generator)) for n, a in net.axes.free.items()}
        for name, axis in net.axes.free.items():
            widths[name] = max(2, widths[name]) if axis.size > 1 else int(torch.randint(2, (), generator=generator))
        arch = Arch({n: range(width) for n, width in widths.items()})
        counted = count(derive(net.model, net.axes, arch), net.images)
        assert Macs(net.axes)(arch.sizes(net.axes)).item() == counted.macs
        assert Params(net.axes)(arch.sizes(net.axes)).item() == counted.params
    dense = count(net.model, net.images)
    assert (Macs(net.axes)({}).item(), Params(net.axes)({}).item()) == (dense.macs, dense.params)


@pytest.mark.parametrize("cost", [Macs, Params])
def test_counts_are_differentiable(net: Traced, cost: type[Macs] | type[Params]) -> None:
    model, names = cost(net.axes), list(net.axes.free)
    sizes = torch.tensor([0.6 * net.axes[name].size for name in names], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(dict(zip(names, sizes, strict=True))), sizes)
    for i, step in enumerate(torch.eye(len(names), dtype=torch.float64) * 1e-3):
        up, down = (model(dict(zip(names, sizes.detach() + sign * step, strict=True))) for sign in (1, -1))
        assert gradient[i].item() == pytest.approx(
            ((up - down) / 2e-3).item(), rel=1e-6
        )  # cubic at most: error 1e-6 h^2


def test_derive_leaves_the_model_untouched(net: Traced) -> None:
    model = net.fresh()
    GatedModel(model, net.axes)
    before, facts = copy.deepcopy(model.state_dict()), [repr(m) for m in model.modules()]
    hooks = [list(module._forward_hooks) for module in model.modules()]
    small = derive(model, net.axes, net.random(0.5))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert facts == [repr(m) for m in model.modules()]
    assert hooks == [list(module._forward_hooks) for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_copies_are_independent_and_fixed_is_reentrant(name: str) -> None:
    net = traced(name)
    gated = GatedModel(net.fresh(), net.axes).eval()
    half, quarter = net.random(0.5), net.random(0.25)
    with torch.no_grad():
        dense, other = gated(net.images), copy.deepcopy(gated)
        for gate in other.gates.values():
            gate.keep[1:] = 0
        with gated.fixed(half):
            outer, elsewhere = gated(net.images), other(net.images)
            with gated.fixed(quarter):
                inner = gated(net.images)
            with pytest.raises(KeyError), gated.fixed(quarter):
                raise KeyError
            assert torch.equal(gated(net.images), outer)
        assert torch.equal(gated(net.images), dense)
        assert min(apart(dense, outer), apart(outer, inner), apart(outer, elsewhere), apart(dense, elsewhere)) > 1e-4
        assert all(bool(gate.keep.all()) for gate in gated.gates.values())


@pytest.mark.parametrize(
    "name",
    few(["test_resnet", "test_efficientnet", "regnety_002", "test_convnext", "test_vit", "densenet121"]),
)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    net = traced(name)
    gated = GatedModel(net.fresh(), net.axes, "weight", options={"init": 0.0}).train()
    assert all(0 < float(keep.detach().sum()) < len(keep) for keep in gated.gate_values().values() if len(keep) > 16)
    expected = kept_gradients(gated, net.images)
    gated.backbone.set_grad_checkpointing()
    got = kept_gradients(gated, net.images)
    assert expected.keys() == got.keys()
    assert all(torch.allclose(expected[key], got[key], rtol=1e-4, atol=1e-6) for key in expected)


def test_a_derived_model_is_a_timm_model(net: Traced) -> None:
    small = derive(net.fresh(), net.axes, net.random(0.5))
    with torch.no_grad():
        features = small.forward_features(net.images)
        assert torch.equal(small.forward_head(features), small(net.images))
        assert small.num_features == features.shape[-1 if features.ndim == 3 else 1]
        assert small.head_hidden_size == small.forward_head(features, pre_logits=True).shape[-1]
        assert small.head_hidden_size == classifier_width(small.get_classifier())
        stages = small.forward_intermediates(net.images, intermediates_only=True)
        assert [stage.shape[1] for stage in stages] == [info["num_chs"] for info in small.feature_info]
        assert small.group_matcher()
        small.reset_classifier(7)
        assert small(net.images).shape == (2, 7)
        small.reset_classifier(0)
        assert small(net.images).shape == (2, small.head_hidden_size)


@pytest.mark.parametrize("user", [*USERS, *READERS])
def test_exactness_of_user_modules(user: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = user()
    net = traced_model(model, model.example())
    double, images = net.double(), net.images.double()
    assert net.axes.free
    report = compare(net.axes, net.random(0.5), double.state_dict(), images)
    assert report.worst_error <= EXACT
    expected, got = both(GatedModel(double, net.axes).eval(), net.random(0.5), images)
    assert apart(expected, got) <= EXACT


def test_dicts_go_in_and_come_out() -> None:
    model = Mappings()
    axes = trace(model, model.example())
    assert set(axes.free) == {"first"}
    arch = Arch.random(axes)
    proof = verify(model, axes, arch, model.example())
    assert max(proof.max_rel_error, proof.worst_node_error) <= EXACT < proof.control_error
    assert derive(model, axes, arch)(*model.example())["logits"].shape == (2, 4)


def test_an_attention_of_torch_with_a_token_of_its_own_is_left_whole() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, add_zero_attn=True)
            self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(x + self.down(self.up(x).relu()))

    model, x = Block(), torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    axes = trace(model, x)
    assert set(axes.free) == {"up", "up.depth"}
    assert verify(model, axes, Arch.random(axes), x).max_rel_error <= EXACT


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    small = derive(model, trace(model, model.example()), Arch.random(trace(model, model.example())))
    assert small.first.weight is small.second.weight
    assert small.first.weight.shape == (4, 4)


def test_a_parameter_that_is_never_used_is_no_axis() -> None:
    model = Unused()
    axes = trace(model, model.example())
    assert [name for name, axis in axes.free.items() if any("idle" in m.tensor for m in axis.members)] == []
    assert set(axes.free) == {"used"}


def test_an_operator_without_rule_freezes_what_it_touches() -> None:
    model = ChannelSum()
    axes = trace(model, model.example())
    assert "cumsum" in axes["first"].frozen
    assert "running" in axes["first"].frozen
    assert axes["second"].frozen is None
    assert axes["head"].frozen == "model output"


def test_the_classifier_is_frozen(net: Traced) -> None:
    logits = [axis for axis in net.axes.values() if axis.frozen == "model output"]
    assert [axis.size for axis in logits] == [10]
    assert all(axis.frozen for axis in net.axes.values() if axis not in net.axes.free.values())


def test_a_model_that_cannot_be_captured_is_one_clear_error() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match=r"Branching cannot be captured .* Check that") as caught:
        trace(Branching(), torch.ones(2, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_certificate_says_what_was_compared(name: str) -> None:
    net = traced(name)
    model = net.fresh()
    before = copy.deepcopy(model.state_dict())
    proof = verify(model, net.axes, net.random(0.5), net.images)
    assert max(proof.max_rel_error, proof.worst_node_error) <= EXACT < proof.control_error
    assert proof.worst_node in {node.name for node in net.axes.walk.captured.graph.nodes}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_certificate_needs_an_architecture_of_this_model() -> None:
    net = traced("test_resnet")
    with pytest.raises(ArchError, match="does not have"):
        verify(net.fresh(), net.axes, Arch({"nowhere": [0]}), net.images)
    assert verify(net.fresh(), net.axes, Arch.dense(net.axes), net.images).control_error == 0


@pytest.mark.parametrize("name", nas_prune.__all__)
def test_a_public_name_is_no_module_whatever_was_imported_before(name: str) -> None:
    if find_spec(f"nas_prune.{name}"):
        import_module(f"nas_prune.{name}")
    assert callable(getattr(nas_prune, name))
