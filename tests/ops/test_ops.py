"""Laws of the operations: the equalities of their papers, the shapes of what they replace, and life as plain data."""

import json
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from descriptions import CHANNELS, DESCRIPTIONS, SUM, WIDE
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from nas_prune import trace
from nas_prune.base.errors import SpaceError, UnknownNameError
from nas_prune.derivation.verify import eager_error
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.structural import StructuralPenalty
from nas_prune.ops import Choice, build, described, first_alone, inherit, name_of, operations
from nas_prune.ops.local_similarity import NEIGHBOURS, cost_volume, local_similarity, self_reassemble
from nas_prune.ops.sparse_conv import StructuredSparseConvolution
from nas_prune.ops.sparse_supports import grids, taps
from nas_prune.ops.structured_conv import StructuredConvolution, bases, coefficients, placements, unstructured
from nas_prune.tracing.arch import Arch

VARIANTS = {"bare", "dilated", "strided_skip", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "nor_conv_1x1"}
TRACED = [name for name in DESCRIPTIONS if name not in VARIANTS]
named = pytest.mark.parametrize("name", DESCRIPTIONS)


class Side(nn.Module):
    """Operations side by side, each on channels of its own if there is a ``stem``, and what they make of an input."""

    def __init__(self, stem: bool) -> None:
        super().__init__()
        self.operations = nn.ModuleDict({name: build(DESCRIPTIONS[name]) for name in TRACED})
        self.stems = nn.ModuleDict({name: nn.Conv2d(3, CHANNELS, 1) for name in self.operations if stem})
        self.heads = nn.ModuleDict({name: nn.LazyConv2d(4, 1) for name in self.stems})

    def forward(self, x: Tensor) -> list[Tensor]:
        if not self.stems:
            return [operation(x) for operation in self.operations.values()]
        inside = {name: self.operations[name](stem(x).relu()) for name, stem in self.stems.items()}
        return [head(inside[name].relu()).mean((2, 3)) for name, head in self.heads.items()]


def used(module: nn.Module, x: Tensor) -> nn.Module:
    """The module in eval mode, its norms having seen some images."""
    with torch.no_grad():
        for _ in range(3):
            module(x)
    return module.eval()


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return got.shape == expected.shape and float((got - expected).detach().abs().max()) <= tolerance


# every operation


@named
def test_an_operation_is_built_again_from_json(name: str) -> None:
    x = torch.randn(2, CHANNELS, 9, 8)
    first = used(build(DESCRIPTIONS[name]), x)
    again = build(json.loads(json.dumps(described(first))))
    again.load_state_dict(first.state_dict())
    assert name_of(type(again)) == DESCRIPTIONS[name]["operation"]
    assert torch.equal(first(x), again.eval()(x))


def test_all_operations_can_be_exported() -> None:
    x = torch.randn(2, CHANNELS, 9, 8)
    side = used(Side(stem=False), x)
    program = torch.export.export(side, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=1)},), strict=False)
    for name, got, expected in zip(TRACED, program.module()(x[:1]), side(x[:1]), strict=True):
        assert close(got, expected, 1e-5), name


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
def test_onnx_computes_the_sums_of_a_structured_convolution(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, operation = torch.randn(2, CHANNELS, 9, 8), build(DESCRIPTIONS["channel_boxes"])
    torch.onnx.export(operation, (x,), tmp_path / "boxes.onnx", input_names=["x"], dynamo=True, verbose=False)
    (got,) = runtime.InferenceSession(str(tmp_path / "boxes.onnx")).run(None, {"x": x.numpy()})
    assert close(torch.from_numpy(got), operation(x), 1e-5)


def test_gated_equals_derived_around_every_operation() -> None:
    x = torch.randn(2, 3, 9, 8)
    side = used(Side(stem=True), x)
    axes = trace(side, x)
    assert "operations.local_similarity.embed" in axes.free
    for name in TRACED:
        assert any(axis.startswith((f"stems.{name}", f"operations.{name}")) for axis in axes.free), name
    assert [name for name, axis in axes.items() if axis.frozen not in (None, "model output")] == ["stems.channel_boxes"]
    arch = Arch.random(axes, keep=0.5, generator=torch.Generator().manual_seed(0))
    assert eager_error(side, axes, arch, x) < 1e-9


def test_all_operations_are_tested() -> None:
    elsewhere = ("nas_prune.ops.operation", "nas_prune.ops.stripes")
    ours = {name for name, kind in operations.items() if not kind.__module__.startswith(elsewhere)}
    assert ours == {str(each["operation"]) for each in DESCRIPTIONS.values()}


def test_a_zero_is_as_large_as_what_would_stand_there() -> None:
    x = torch.randn(2, CHANNELS, 9, 8)
    for told in ({}, {"channels": CHANNELS, "stride": 1}, {"channels": CHANNELS, "stride": 2}):
        zero = build({"operation": "zero", **told})
        assert described(zero) == {"operation": "zero", **told}
        pool = build({"operation": "cell_pool", "channels": CHANNELS, **told})
        assert torch.equal(zero(x), torch.zeros_like(pool(x)))


# a choice


def test_a_choice_is_the_sum_of_its_candidates() -> None:
    choice, x = build(DESCRIPTIONS["choice"]), torch.randn(2, CHANNELS, 9, 8)
    assert isinstance(choice, Choice)
    structured, dense, skip = choice.candidates.values()
    assert list(choice.candidates) == list(SUM)
    assert torch.equal(choice(x), structured(x) + dense(x) + skip(x))


def test_the_first_candidate_trains_alone_as_the_dense_network() -> None:
    torch.manual_seed(0)
    plain = {"operation": "convolution", "in_channels": 4, "out_channels": 4, "kernel": 3}
    choice = Choice(candidates={"wide": plain, "narrow": {**plain, "kernel": 1}})
    choice.candidates["narrow"].convolution.requires_grad_(False)  # by somebody else, and stays so
    before = {name: value.clone() for name, value in choice.state_dict().items()}
    images = torch.randn(2, 4, 8, 8)
    with first_alone(choice):
        assert torch.equal(choice(images), choice.candidates["wide"](images))
        optimizer = torch.optim.SGD([each for each in choice.parameters() if each.requires_grad], 0.1, weight_decay=0.1)
        choice(images).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in choice.state_dict().items() if not torch.equal(value, before[name])}
    assert "candidates.wide.convolution.weight" in changed
    assert all(name.startswith("candidates.wide.") for name in changed)
    learning = {name for name, each in choice.named_parameters() if each.requires_grad}
    assert choice.live is None
    assert learning == {name for name, _ in choice.named_parameters()} - {"candidates.narrow.convolution.weight"}


def heirs(first: dict[str, object], other: dict[str, object]) -> tuple[nn.Module, nn.Module]:
    """Two candidates of one choice in float64, the first one trained, the other with what it inherits from it."""
    torch.manual_seed(0)
    choice = Choice(candidates={"first": {**WIDE, **first}, "other": {**WIDE, **other}}).double()
    used(choice.candidates["first"].train(), torch.randn(4, CHANNELS, 9, 8).double())
    inherit(choice)
    return choice.eval().candidates["first"], choice.candidates["other"]


CONV, SPLIT = {"operation": "convolution"}, {"operation": "separable_convolution"}


@pytest.mark.parametrize(
    ("first", "other", "size"),
    [
        (CONV, {**CONV, "kernel": 7}, 9),  # the new taps are 0
        (CONV, {**CONV, "kernel": 1}, 1),  # of one pixel, only the middle of a kernel sees anything
        ({**CONV, "stride": 2}, {**CONV, "stride": 2, "kernel": 5}, 9),
        ({**CONV, "dilation": 2}, {**CONV, "kernel": 5}, 9),  # every second tap
        ({**CONV, "groups": 4}, {**CONV, "groups": 2}, 9),
        ({**CONV, "norm": False, "bias": True}, {**CONV, "norm": False, "bias": True, "kernel": 5}, 9),
        ({**CONV, "kernel": 1}, {**SPLIT, "kernel": 5}, 9),
        ({**CONV, "groups": CHANNELS}, {**SPLIT, "kernel": 5}, 9),
    ],
)
def test_a_candidate_that_can_starts_as_the_first_one(
    first: dict[str, object], other: dict[str, object], size: int
) -> None:
    trained, heir = heirs(first, other)
    x = torch.randn(3, CHANNELS, size, size).double()
    assert close(heir(x), trained(x))


def test_what_a_candidate_cannot_have_is_lost_and_no_more() -> None:
    trained, heir = heirs(CONV, {**CONV, "groups": 2})
    weight = trained.get_parameter("convolution.weight")
    assert torch.equal(heir.get_parameter("convolution.weight"), torch.cat([weight[:4, :4], weight[4:, 4:]]))
    trained, heir = heirs(CONV, SPLIT)
    weight = trained.get_parameter("convolution.weight")
    nearest = heir.get_parameter("pointwise.weight") * heir.get_parameter("depthwise.weight").transpose(0, 1)
    lost = sum(torch.linalg.svdvals(weight[:, i].flatten(1))[1:].square().sum() for i in range(CHANNELS))
    assert float((weight - nearest).detach().square().sum()) == pytest.approx(float(lost.detach()))
    kept = {**heir.state_dict()}
    heir.inherit(build(DESCRIPTIONS["max_pool"]))
    assert all(torch.equal(kept[name], value) for name, value in heir.state_dict().items())


@pytest.mark.parametrize("norm", [False, True])
def test_a_structured_candidate_starts_as_near_to_the_first_one_as_structure_allows(norm: bool) -> None:
    torch.manual_seed(0)
    given = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=not norm)
    description = {"structured": {"operation": "structured_convolution", "kernel": 2}}
    choice = Choice.like(given, candidates={"first": {**CONV, "norm": norm}, **description}).double()
    trained, heir = choice.candidates.values()
    alpha = torch.randn(CHANNELS, CHANNELS, 2, 2).double()
    with torch.no_grad():  # a kernel that is structured
        span = placements(3, 2)
        trained.convolution.weight.copy_(torch.einsum("o c n m, u n, v m -> o c u v", alpha, span, span))
    if norm:
        used(trained.train(), torch.randn(4, CHANNELS, 9, 8).double())
    inherit(choice)
    scale, shift = trained.affine()
    torch.testing.assert_close(heir.convolution.weight, alpha * scale[:, None, None, None])
    x = torch.randn(2, CHANNELS, 9, 8).double()
    added = 0 if heir.convolution.bias is not None else shift[:, None, None]
    torch.testing.assert_close(heir.eval()(x) + added, trained.eval()(x))


def test_a_choice_of_given_operations_keeps_their_weights() -> None:
    torch.manual_seed(0)
    given = {name: build(description) for name, description in SUM.items()}
    state = torch.get_rng_state()
    choice = Choice.of(given, "edge")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(choice.candidates[name] is each for name, each in given.items())
    assert choice.config == {"candidates": {name: described(each) for name, each in given.items()}, "shared": "edge"}


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ({}, "needs candidates"),
        ({"conv.3": {"operation": "skip"}}, "conv.3"),
        ({"items": {"operation": "skip"}}, "items"),
        ({"conv": {"kernel": 3}}, "operation: <name>"),
        ({"conv": {"operation": "convolution", "kernels": 3}}, "kernels"),
    ],
)
def test_what_is_no_choice_is_refused(candidates: dict[str, dict[str, object]], text: str) -> None:
    with pytest.raises(SpaceError, match=text):
        Choice(candidates=candidates)


def test_names_and_modules_that_are_no_operations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'convolution'"):
        build({"operation": "convolutoin"})
    with pytest.raises(SpaceError, match="Conv2d is not a registered operation"):
        described(nn.Conv2d(1, 1, 1))
    with pytest.raises(SpaceError, match="takes candidates"):
        Choice.like(nn.Conv2d(3, 3, 1), kernel=3)


# in the place of a convolution

LIKE = {
    "conv_3x3": {"operation": "convolution", "kernel": 3},
    "conv_5x5": {"operation": "convolution", "kernel": 5, "dilation": 2},
    "bare": {"operation": "convolution", "norm": False},
    "average": {"operation": "average_pool"},
    "maximum": {"operation": "max_pool", "kernel": 5},
    "skip_connect": {"operation": "skip_connection"},
    "structured": {"operation": "structured_convolution"},
}
SEPARABLE = {"separable": {"operation": "separable_convolution", "kernel": 5}}
SPARSE = {"sparse": {"operation": "structured_sparse_convolution", "supports": ["full", "centre"]}}


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_candidates_give_the_shape_of_what_they_replace(backbone: str) -> None:
    model, shapes = timm.create_model(backbone, num_classes=10).eval(), {}
    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d) and each.kernel_size != (2, 2)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, x, y: shapes.update({layer: (x[0].shape, y.shape)}))
    model(torch.randn(1, 3, 33, 32))
    for layer in {str(layer): layer for layer in shapes}.values():
        depthwise = layer.groups == layer.in_channels > 1
        others = {} if depthwise else SEPARABLE if layer.out_channels % 2 else SEPARABLE | SPARSE
        choice = Choice.like(layer, candidates={**LIKE, **others}).eval()
        x = torch.randn(shapes[layer][0])
        assert {each(x).shape for each in choice.candidates.values()} == {shapes[layer][1]}
        dense = choice.candidates["conv_3x3"].get_parameter("convolution.weight")
        assert not depthwise or dense.shape[1] == 1


def test_the_bare_convolution_is_the_one_it_replaces() -> None:
    layer = nn.Conv2d(6, 4, 3, 2, 1).double()
    x = torch.randn(2, 6, 9, 8).double()
    choice = Choice.like(layer, candidates={"bare": LIKE["bare"], "structured": LIKE["structured"]})
    assert torch.equal(choice.candidates["bare"](x), layer(x))
    assert close(choice.candidates["structured"](x), layer(x))
    normed = operations["convolution"].like(layer)
    assert torch.equal(normed.get_parameter("convolution.weight"), layer.weight)


@pytest.mark.parametrize(
    ("layer", "operation", "text"),
    [
        (nn.Linear(4, 4), "convolution", "not of a Linear"),
        (nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), "convolution", "square"),
        (nn.Conv2d(4, 4, 3), "max_pool", "half its size"),
        (nn.Conv2d(4, 4, 2, 2), "separable_convolution", "half its size"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), "separable_convolution", "depthwise already"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "structured_convolution", "zero padding"),
        (nn.Conv2d(4, 4, 3, 2, 1), "local_similarity", "keeps size"),
        (nn.Conv2d(4, 4, 3, dilation=2), "structured_convolution", "no dilation"),
        (nn.Conv2d(4, 4, 3, dilation=2), "structured_sparse_convolution", "no dilation"),
    ],
)
def test_what_cannot_be_replaced_is_refused(layer: nn.Module, operation: str, text: str) -> None:
    with pytest.raises(SpaceError, match=text):
        operations[operation].like(layer)


def test_a_factorized_reduction_rounds_up_and_sees_all_pixels() -> None:
    reduction = build({"operation": "cell_skip", "channels": 1, "out_channels": 2, "stride": 2}).eval()
    with torch.no_grad():
        for name in ("even", "odd"):
            reduction.get_parameter(f"reduction.{name}.weight").fill_(1)
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5)
    even, odd = x[0, 0, ::2, ::2], pad(x, (0, 1, 0, 1))[0, 0, 1::2, 1::2]
    assert close(reduction(x)[0], torch.stack([even, odd]), 1e-3)


# structured sparse convolution


def sparse_against_dense(operation: StructuredSparseConvolution, weight: Tensor, x: Tensor) -> bool:
    """Give the operation the living entries of a dense weight (o i k k), and compare with conv(x, W * M)."""
    config, mask = operation.config, operation.mask().double()
    assert mask.shape == weight.shape
    living = (weight * mask)[operation.order()]
    within = living.unflatten(1, (config["groups"], -1)).sum(1)  # each output sees one group: the others add zero
    rows = 0
    with torch.no_grad():
        for support, one in zip(config["supports"], operation.classes, strict=True):
            for grid, layer in zip(grids(taps(support, config["kernel"])), one, strict=True):
                small = within[rows : rows + layer[-1].out_channels, :, list(grid[0])][..., list(grid[1])]
                layer[-1].weight.copy_(small)
            rows += one[0][-1].out_channels
    expected = conv2d(x, weight * mask, stride=config["stride"], padding=config["padding"])
    return close(operation(x), expected[:, operation.order()])


SUPPORTS = (["full"], ["centre"], ["row_0", "row_1", "row_2"], ["plus", "corners"], ["checkerboard", "column_2"])


@pytest.mark.parametrize("supports", SUPPORTS, ids=str)
def test_structured_sparse_is_a_convolution_with_a_masked_weight(supports: list[str]) -> None:
    for groups, stride, padding in product((1, 2), (1, 2), (0, 1, 2)):
        sizes = {"in_channels": 4, "out_channels": 12, "groups": groups, "stride": stride, "padding": padding}
        operation = StructuredSparseConvolution(supports=supports, **sizes).double()
        assert sparse_against_dense(operation, torch.randn(12, 4, 3, 3).double(), torch.randn(2, 4, 8, 7).double())


def test_special_cases_of_structured_sparse() -> None:
    x = torch.randn(2, 6, 8, 7).double()
    for groups, support, kernel in ((6, "full", 3), (1, "centre", 1), (3, "full", 3)):
        sizes = {"in_channels": 6, "out_channels": 6, "kernel": 3, "padding": 1, "bias": True}
        operation = StructuredSparseConvolution(groups=groups, supports=[support], **sizes).double()
        plain = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=groups).double()
        operation.load_state_dict({f"classes.0.0.0.{name}": each for name, each in plain.state_dict().items()})
        assert torch.equal(operation(x), plain(x))


def test_density_and_initial_scale_of_structured_sparse() -> None:
    sizes = {"in_channels": 64, "out_channels": 192, "groups": 2, "supports": ["row_0", "row_1", "row_2"]}
    operation = StructuredSparseConvolution(**sizes)
    assert float(operation.mask().mean()) == pytest.approx(1 / 6)  # |support| / (g k^2)
    assert sum(each.numel() for each in operation.parameters()) == operation.mask().sum()
    deviation = torch.cat([each.flatten() for each in operation.parameters()]).std()
    assert float(deviation.detach()) == pytest.approx((2 / (32 * 3)) ** 0.5, rel=0.02)  # fan_in = C/g |support|


def test_supports_are_few_small_kernels() -> None:
    count = {name: [len(r) * len(c) for r, c in grids(taps(name, 3))] for name in ("full", "corners", "plus", "row_1")}
    assert count == {"full": [9], "corners": [4], "plus": [3, 2], "row_1": [3]}
    for name in ("checkerboard", "plus"):
        parts = [set(product(*grid)) for grid in grids(taps(name, 5))]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert set.union(*parts) == taps(name, 5)


@pytest.mark.parametrize(
    "wrong", [{"supports": ["row_3"]}, {"supports": []}, {"supports": ["diagonal"]}, {"groups": 3}]
)
def test_impossible_supports_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpaceError, match="support"):
        StructuredSparseConvolution(**{"in_channels": 4, "out_channels": 4, **wrong})


# structured convolution


def boxes(channels: int, size: int, c: int, n: int) -> Tensor:
    """A ((C N N) (c n n)), box by box as the paper draws them."""
    columns = []
    for first, row, column in product(range(c), range(n), range(n)):
        box = torch.zeros(channels, size, size, dtype=torch.float64)
        box[first : first + channels - c + 1, row : row + size - n + 1, column : column + size - n + 1] = 1
        columns.append(box.flatten())
    return torch.stack(columns, 1)


SHAPES = [(6, 3, 6, 2), (6, 3, 4, 2), (5, 5, 2, 3), (8, 1, 3, 1), (4, 3, 4, 3), (4, 4, 3, 1)]  # C N c n


@pytest.mark.parametrize(("channels", "size", "c", "n"), SHAPES)
def test_a_structured_kernel_is_a_pooling_and_a_small_convolution(channels: int, size: int, c: int, n: int) -> None:
    matrix = boxes(channels, size, c, n)
    for stride, padding in product((1, 2, 3), (0, 1, 2)):
        layer = nn.Conv2d(channels, 7, size, stride, padding).double()
        alpha = torch.randn(7, c, n, n).double()
        with torch.no_grad():
            layer.weight.copy_((alpha.flatten(1) @ matrix.T).unflatten(1, layer.weight.shape[1:]))
        operation = StructuredConvolution.like(layer, kernel=n, channels=c)
        x = torch.randn(2, channels, 9, 8).double()
        assert close(operation.convolution.weight, alpha)
        assert close(operation(x), layer(x))


def test_depthwise_and_grouped_layers_are_structured_in_space() -> None:
    for groups in (2, 6):
        layer = nn.Conv2d(6, 6, 3, 2, 1, groups=groups).double()
        alpha = torch.randn(6, 6 // groups, 2, 2).double()
        blurred = conv2d(alpha.flatten(0, 1)[:, None], torch.ones(1, 1, 2, 2).double(), padding=1)
        with torch.no_grad():
            layer.weight.copy_(blurred.reshape(layer.weight.shape))
        operation, x = StructuredConvolution.like(layer, kernel=2), torch.randn(2, 6, 9, 8).double()
        assert close(operation(x), layer(x))
    with pytest.raises(SpaceError, match="do not fit"):
        StructuredConvolution.like(layer, kernel=2, channels=3)


@pytest.mark.parametrize(("channels", "size", "c", "n"), SHAPES)
def test_the_projector_of_a_structure(channels: int, size: int, c: int, n: int) -> None:
    matrix, total = boxes(channels, size, c, n), channels * size**2
    factors = placements(channels, c), placements(size, n), placements(size, n)
    assert torch.equal(torch.kron(torch.kron(*factors[:2]), factors[2]), matrix)
    eye = torch.eye(total).double().unflatten(1, (channels, size, size))
    projector = torch.eye(total) - unstructured(eye, bases(eye, n, c)).flatten(1)
    assert close(projector @ projector, projector)
    assert close(projector, projector.T)
    assert int(torch.linalg.matrix_rank(projector)) == c * n * n
    assert close(projector, matrix @ torch.linalg.pinv(matrix), 1e-11)
    assert close(coefficients(eye, n, c).flatten(1).T, torch.linalg.pinv(matrix), 1e-11)


@pytest.fixture(scope="module")
def gated() -> GatedModel:
    """A net with gates, whose first convolution the tests of the penalty give weights of their own."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)).double()
    return GatedModel(net, trace(net, torch.randn(2, 4, 5, 5).double()))


def penalty_of(gated: GatedModel, weight: Tensor, **sizes: int) -> float:
    gated.backbone.get_submodule("0").weight = nn.Parameter(weight)
    return float(StructuralPenalty(layers={"0": sizes}, alpha=0.5)(gated).detach())


def test_the_structural_penalty(gated: GatedModel) -> None:
    channels, c = 16, 12
    alpha = torch.randn(32, c * 4).double()
    structured = (alpha @ boxes(channels, 3, c, 2).T).unflatten(1, (channels, 3, 3))
    gaussian = torch.randn(64, channels, 3, 3).double()
    assert penalty_of(gated, structured, kernel=2, channels=c) < 1e-14
    expected = 0.5 * (1 - c * 4 / (channels * 9)) ** 0.5
    assert penalty_of(gated, gaussian, kernel=2, channels=c) == pytest.approx(expected, rel=0.02)
    scaled = penalty_of(gated, 100 * gaussian, kernel=2, channels=c)
    assert scaled == pytest.approx(penalty_of(gated, gaussian, kernel=2, channels=c))
    assert penalty_of(gated, gaussian, kernel=3) < 1e-14
    assert penalty_of(gated, torch.zeros(4, 4, 3, 3).double(), kernel=2) == 0


def test_descending_the_structural_penalty_makes_layers_structured(gated: GatedModel) -> None:
    layers = [gated.backbone.get_submodule(name) for name in ("0", "1")]
    for layer in layers:
        layer.weight = nn.Parameter(torch.randn(4, 4, 3, 3).double())
    penalty = StructuralPenalty(None, layers={"[01]": {"kernel": 2}}, alpha=1.0)
    before = float(penalty(gated).detach())
    for _ in range(20):
        loss = penalty(gated)
        slopes = torch.autograd.grad(loss, [layer.weight for layer in layers])
        step = float(loss.detach()) / sum(float(slope.square().sum()) for slope in slopes)  # Polyak's: the least is 0
        with torch.no_grad():
            for layer, slope in zip(layers, slopes, strict=True):
                layer.weight -= step * slope
    assert float(penalty(gated).detach()) < 1e-3 * before
    x = torch.randn(2, 4, 8, 8).double()
    small = StructuredConvolution.like(layers[0], kernel=2)
    assert close(small(x), layers[0](x), 1e-2)


def test_a_structural_penalty_of_no_layer_is_refused(gated: GatedModel) -> None:
    with pytest.raises(SpaceError, match="'layer9' is no convolution"):
        StructuralPenalty(layers={"layer9": {"kernel": 2}})(gated)


# local similarity


def test_local_similarity_is_the_cosine_with_each_neighbour() -> None:
    features = torch.randn(2, 5, 6, 7).double()
    for dilation in (1, 2, 4):
        got = local_similarity(features, dilation)
        expected = torch.zeros(2, 8, 6, 7).double()
        for number, (row, column) in enumerate(NEIGHBOURS):
            for y, x in product(range(6), range(7)):
                v, u = y + dilation * row, x + dilation * column
                if 0 <= v < 6 and 0 <= u < 7:
                    cosine = torch.cosine_similarity(features[:, :, y, x], features[:, :, v, u], dim=1)
                    expected[:, number, y, x] = cosine.clamp(min=0)
        assert close(got, expected)
        assert float(got.min()) == 0
        assert float(got.max()) <= 1 + 1e-12


def test_known_values_of_local_similarity() -> None:
    features = torch.randn(1, 5, 6, 7).double()
    scaled = features * (0.1 + torch.rand(1, 1, 6, 7).double())
    assert close(local_similarity(scaled), local_similarity(features))
    constant = local_similarity(torch.ones(1, 5, 6, 7).double())
    assert close(constant[..., 1:-1, 1:-1], torch.ones(1, 8, 4, 5).double())
    assert float(constant[0, :, 0, 0].sum()) == pytest.approx(3)
    negated = torch.ones(1, 5, 1, 2).double() * torch.tensor([1.0, -1.0]).double()
    assert float(local_similarity(negated).abs().max()) == 0


def test_local_similarity_is_added_to_its_input() -> None:
    operation = build(DESCRIPTIONS["local_similarity"]).double()
    x = torch.randn(2, CHANNELS, 6, 7).double()
    pattern = local_similarity(operation.get_submodule("embed")(x), 2)
    assert close(operation(x), x + operation.get_submodule("project")(pattern))


def test_detached_patterns_train_the_embedding_and_nothing_before_it() -> None:
    plain, detached = (build({**DESCRIPTIONS["local_similarity"], "detach": each}) for each in (False, True))
    detached.load_state_dict(plain.state_dict())
    x = torch.randn(2, CHANNELS, 6, 7)
    assert torch.equal(plain(x), detached(x))
    ends = []
    for operation in (plain, detached):
        given = x.clone().requires_grad_()
        operation(given).sum().backward()
        ends.append((given.grad, operation.get_submodule("embed").weight.grad))
    torch.testing.assert_close(ends[1][0], torch.ones_like(x))  # what is added to x is no function of x
    assert not torch.allclose(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1])


def stereogram(shift: int) -> tuple[Tensor, Tensor]:
    """Random dots of eight channels, and the same seen from ``shift`` pixels further right."""
    scene = torch.randn(1, 8, 12, 40)
    return scene[..., : 40 - shift], scene[..., shift:]


INSIDE = (..., slice(4, -4), slice(14, -4))  # away from what the shift and the largest dilation cannot see


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_a_random_dot_stereogram_has_the_known_disparity(shift: int) -> None:
    left, right = stereogram(shift)
    assert bool((cost_volume(left, right, 10).argmax(1)[INSIDE] == shift).all())


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_local_similarity_sees_the_disparity_in_another_light(shift: int) -> None:
    left, right = stereogram(shift)
    right = right * (0.1 + 5 * torch.rand(1, 1, *right.shape[2:]))
    seen = [torch.cat([local_similarity(view, dilation) for dilation in (1, 2, 4)], 1) for view in (left, right)]
    assert bool((cost_volume(seen[0], seen[1], 10).argmax(1)[INSIDE] == shift).all())
    assert not bool((cost_volume(left, right, 10).argmax(1)[INSIDE] == shift).all())


def test_reassembling_a_volume() -> None:
    volume, still = torch.randn(2, 5, 6, 7).double(), torch.zeros(2, 3, 2, 6, 7).double()
    weights = torch.rand(2, 3, 6, 7).double()
    assert close(self_reassemble(volume, still, weights), volume, 1e-6)  # the paper's 1e-8 below a sum of about 1
    right = still + torch.tensor([0.0, 1.0]).double()[None, None, :, None, None]
    assert close(self_reassemble(volume, right, weights)[..., :-1], volume[..., 1:], 1e-6)
    half = still + torch.tensor([0.5, 0.0]).double()[None, None, :, None, None]
    between = (volume[:, :, 1:] + volume[:, :, :-1]) / 2
    assert close(self_reassemble(volume, half, weights)[:, :, :-1], between, 1e-6)
    steps = still.clone()
    steps[:, 1, 0], steps[:, 2, 1] = 1, 1  # the pixel, the one below, the one to the right
    mean = (volume[:, :, :-1, :-1] + volume[:, :, 1:, :-1] + volume[:, :, :-1, 1:]) / 3
    assert close(self_reassemble(volume, steps, torch.ones_like(weights))[..., :-1, :-1], mean, 1e-6)
