"""SOSP by the equations: theta of each structure, the Hessian written out, greedy removal; and laws of both forms."""

import copy

import pytest
import torch
from test_criteria_of_loss import Batch, convolutions, joined
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from zoo import few, traced

from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.criteria.of_loss.sosp import gauss_newton, second_order
from nas_prune.methods.criteria.of_loss.twice import twice_differentiable
from nas_prune.methods.gated import GatedModel

BOTH, EXACT = ("sosp_h", "sosp_i"), {"rtol": 1e-9, "atol": 1e-12}
READERS = {"first": "second.weight", "second": "head.weight"}  # what reads each axis of the small network


def written_out(gated: GatedModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """theta_s g (s) and theta_s H theta_t (s t), over the weights that read each unit, all of H written out."""
    images, labels = joined(batches)
    model = gated.plain()
    read = {name: model.get_parameter(name).detach() for name in READERS.values()}
    sizes = [each.numel() for each in read.values()]

    def loss(weights: Tensor) -> Tensor:
        pairs = zip(read.items(), weights.split(sizes), strict=True)
        given = {name: flat.reshape(like.shape) for (name, like), flat in pairs}
        return F.cross_entropy(functional_call(model, given, (images,)), labels)

    structures = []
    for name in READERS.values():
        for unit in range(read[name].shape[1]):
            theta = {each: torch.zeros_like(weight) for each, weight in read.items()}
            theta[name][:, unit] = read[name][:, unit]
            structures.append(torch.cat([each.flatten() for each in theta.values()]))
    thetas, point = torch.stack(structures), torch.cat([each.flatten() for each in read.values()])
    hessian = torch.autograd.functional.hessian(loss, point)
    gradient = torch.autograd.functional.jacobian(loss, point)
    return thetas @ gradient, thetas @ hessian @ thetas.T


def whole(scores: dict[str, Tensor]) -> Tensor:
    """All scores (s), axis by axis."""
    return torch.cat(list(scores.values()))


def test_sosp_h_is_the_first_order_and_half_of_a_row_of_the_hessian_written_out() -> None:
    gated, batches = convolutions()
    single, pairs = written_out(gated, batches)
    scores = criteria["sosp_h"](gated, batches)
    assert list(scores) == list(READERS)
    assert torch.allclose(whole(scores), single.abs() + pairs.sum(1).abs() / 2, **EXACT)
    assert float((pairs.sum(1).abs() / single.abs()).min()) > 1e-3, "the second order is seen"


def test_the_slope_and_the_row_sums_are_those_of_the_equations() -> None:
    gated, batches = convolutions()
    single, pairs = written_out(gated, batches)
    slope, curved = map(whole, second_order(gated, batches))
    assert torch.allclose(slope, single, **EXACT)
    assert torch.allclose(curved, pairs.sum(1), **EXACT)
    assert float(curved.sum()) == pytest.approx(float(pairs.sum()), rel=1e-9)


def by_hand(gated: GatedModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """The slope (s) and Gauss' and Newton's matrix (s s) of SOSP-I, image by image, from the slope of the logits."""
    keep = gated.opened().keep()
    ones, sizes = torch.cat(list(keep.values())), [len(each) for each in keep.values()]
    images, labels = joined(batches)
    slope, pairs = torch.zeros_like(ones), torch.zeros(len(ones), len(ones), dtype=ones.dtype)
    for image, label in zip(images, labels, strict=True):

        def logits(gates: Tensor, image: Tensor = image) -> Tensor:
            opened = gated.opened()
            opened.keep().update(zip(keep, gates.split(sizes), strict=True))
            return opened(image[None])[0]

        jacobian = torch.autograd.functional.jacobian(logits, ones)
        share = logits(ones).softmax(0).detach()
        slope += jacobian.T @ (share - F.one_hot(label, len(share)))
        pairs += jacobian.T @ (torch.diag(share) - torch.outer(share, share)) @ jacobian
    return slope / len(images), pairs / len(images)


def test_sosp_i_removes_greedily_by_the_pairs_of_gauss_and_newton() -> None:
    gated, batches = convolutions()
    slope, pairs = by_hand(gated, batches)
    found = gauss_newton(gated, batches, images=99)
    assert torch.allclose(found[0], slope, **EXACT)
    assert torch.allclose(found[1], pairs, **EXACT)
    removed: list[int] = []
    expected = torch.zeros_like(slope)
    while len(removed) < len(slope):
        left = [unit for unit in range(len(slope)) if unit not in removed]
        rise = {
            unit: float(slope[unit].abs() + pairs[unit, unit].abs() / 2 + sum(pairs[unit, m].abs() for m in removed))
            for unit in left
        }
        unit = min(left, key=rise.__getitem__)
        expected[unit] = rise[unit]
        removed.append(unit)
    scores = whole(criteria["sosp_i"](gated, batches))
    assert torch.allclose(scores, expected, **EXACT)
    assert scores.argsort().tolist() == removed, "one threshold removes in the paper's order"
    assert float(scores.sum()) == pytest.approx(float(slope.abs().sum() + pairs.abs().sum() / 2))


def test_the_pairs_are_symmetric_and_positive_semidefinite() -> None:
    gated, batches = convolutions()
    _, pairs = gauss_newton(gated, batches, images=99)
    assert torch.equal(pairs, pairs.T)
    assert float(torch.linalg.eigvalsh(pairs).min()) > -1e-12


class Shallow(nn.Module):
    """Logits that are linear in the gates of the one width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def shallow() -> tuple[GatedModel, list[Batch]]:
    """The network above in float64, and one batch."""
    generator = torch.Generator().manual_seed(3)
    model, x = Shallow().double(), torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return GatedModel(model, trace(model, x)), [(x, torch.randint(4, (8,), generator=generator))]


def test_where_logits_are_linear_in_the_gates_gauss_and_newton_are_the_hessian() -> None:
    gated, batches = shallow()
    slope, curved = map(whole, second_order(gated, batches))
    other, pairs = gauss_newton(gated, batches, images=99)
    assert torch.allclose(other, slope, **EXACT)
    assert torch.allclose(pairs.sum(1), curved, **EXACT)


def test_the_predicted_change_of_a_quadratic_loss_is_exact() -> None:
    gated, batches = shallow()

    def quadratic(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - F.one_hot(labels, 4)).square().sum()

    x, labels = batches[0]
    slope, curved = map(whole, second_order(gated, batches, quadratic))
    dense, bias = quadratic(gated.opened()(x), labels).detach(), gated.backbone.last.bias.detach()
    closed = quadratic(bias.expand(len(x), -1), labels)
    assert float((closed - dense) / len(x)) == pytest.approx(float(curved.sum() / 2 - slope.sum()), rel=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_permuting_units_permutes_scores(name: str) -> None:
    gated, batches = convolutions()
    order = torch.tensor([2, 0, 3, 1])
    moved = copy.deepcopy(gated.plain())
    with torch.no_grad():
        for tensor in (moved.first.weight, moved.first.bias, moved.norm.weight, moved.norm.bias):
            tensor.copy_(tensor[order])
        moved.second.weight.copy_(moved.second.weight[:, order])
    there = criteria[name](GatedModel(moved, trace(moved, batches[0][0])), batches)
    here = criteria[name](gated, batches)
    assert torch.allclose(there["first"], here["first"][order], **EXACT)
    assert torch.allclose(there["second"], here["second"], **EXACT)


@pytest.mark.parametrize("name", BOTH)
def test_neither_the_order_of_images_nor_their_batches_matter(name: str) -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)
    expected = whole(criteria[name](gated, batches))
    for other in ([(images.flip(0), labels.flip(0))], batches * 2):
        assert torch.allclose(whole(criteria[name](gated, other)), expected, **EXACT)


def test_sosp_i_looks_at_the_first_images() -> None:
    gated, batches = convolutions()
    images, labels = joined(batches)
    some = criteria["sosp_i"](gated, batches, images=4)
    cut = criteria["sosp_i"](gated, [(images[:4], labels[:4])])
    assert torch.equal(whole(some), whole(cut))
    assert not torch.equal(whole(some), whole(criteria["sosp_i"](gated, batches)))


ACTIVATIONS = ("Hardsigmoid", "Hardswish", "Hardtanh", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU")
ACTIVATIONS += ("Mish", "Sigmoid", "LogSigmoid", "Softplus", "Softsign", "Tanh", "PReLU", "GLU", "Softmax")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_differentiated_twice(name: str) -> None:
    module = getattr(nn, name)(**({"dim": -1} if name == "Softmax" else {})).double()
    x = torch.linspace(-3.7, 3.7, 8, dtype=torch.float64).requires_grad_()
    expected = module(x)
    with twice_differentiable():
        assert torch.allclose(module(x), expected, rtol=1e-12)
        assert torch.autograd.gradgradcheck(module, (x,))


@pytest.mark.parametrize("net", few(("test_vit", "test_resnet", "test_efficientnet"), ("test_vit",)))
def test_curvature_is_how_the_slope_moves_in_models_with_attention_and_norms_over_units(net: str) -> None:
    found = traced(net)
    gated = GatedModel(found.double(), found.axes).eval()
    batches = [(found.images.double(), torch.arange(len(found.images)))]
    curved, step = whole(second_order(gated, batches)[1]), 1e-4
    gated.requires_grad_(False)
    assert torch.equal(whole(second_order(gated, batches)[1]), curved), "whether weights learn or not"

    def slope_at(level: float) -> Tensor:
        opened = gated.opened(requires_grad=True)
        with torch.no_grad():
            for keep in opened.keep().values():
                keep.mul_(level)
        loss = F.cross_entropy(opened(batches[0][0]), batches[0][1])
        return torch.cat(torch.autograd.grad(loss, list(opened.keep().values())))

    moved = (slope_at(1 + step) - slope_at(1 - step)) / (2 * step)
    assert float((curved - moved).abs().max()) < 1e-3 * float(moved.abs().max())
