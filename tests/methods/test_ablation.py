"""Laws of ablation: scores are, or add up to, what the loss of the derived network is above that of the dense one."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import nas_prune as npr
from nas_prune.base.errors import DataError, DivergedError
from nas_prune.derivation.replace import substitute
from nas_prune.methods.criteria.of_loss.ablation import ablation
from nas_prune.methods.gated import GatedModel
from nas_prune.ops import inherit
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import Replacement

CANDIDATES = {
    "wide": {"operation": "convolution", "norm": False},
    "narrow": {"operation": "convolution", "norm": False, "kernel": 1},
}
CHOICES = ["layer2.0.conv2", "layer4.0.conv2"]  # maps of 4 x 4 pixels, and of one
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64) for size in (6, 2)]
    return [(x, torch.randint(4, (len(x),), generator=generator)) for x in draw]


@pytest.fixture(scope="module")
def gated(batches: list[Batch]) -> GatedModel:
    """A residual net with a branch and two choices, in float64."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).double()
    with torch.no_grad():
        for block in (model.layer1, model.layer2, model.layer4):
            block[0].bn2.weight.fill_(1.0)  # timm starts branches at zero
        model.fc.weight.mul_(20)  # it is sure of what it says
        model(batches[0][0])  # in train mode: norms with statistics
        model.fc.bias.sub_(model.eval()(batches[0][0]).mean(0))  # and says not always the same
    substitute(model, [Replacement.model_validate({"match": CHOICES, "type": "Conv2d", "candidates": CANDIDATES})])
    inherit(model)
    return GatedModel(model, npr.trace(model, batches[0][0][:1])).eval()


def alone(gated: GatedModel, name: str) -> GatedModel:
    """The model with one axis that may change."""
    others = {other: replace(axis, frozen="it is not asked") for other, axis in gated.axes.items() if other != name}
    return GatedModel(gated.plain(), replace(gated.axes, named={**gated.axes.named, **others})).eval()


def risen(gated: GatedModel, batches: list[Batch], kept: dict[str, list[int]]) -> float:
    """By how much the mean loss of the derived network is above that of the dense one."""
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    networks = [npr.derive(gated.plain(), gated.axes, Arch(each)).eval() for each in (kept, {})]
    with torch.no_grad():
        small, dense = (float(F.cross_entropy(network(images), labels)) for network in networks)
    return small - dense


def test_branches_and_candidates_score_what_they_change(gated: GatedModel, batches: list[Batch]) -> None:
    scores = ablation(gated, batches, steps=1)
    assert scores.keys() == gated.space.free.keys()
    assert float(scores["layer1.0.depth"]) == pytest.approx(max(0.0, risen(gated, batches, {"layer1.0.depth": []})))
    wide, narrow = (f"layer2.0.conv2.{name}" for name in CANDIDATES)
    change = risen(gated, batches, {wide: [], narrow: [0]})
    assert abs(change) > 1e-3
    assert float(scores[wide] - scores[narrow]) == pytest.approx(change)
    assert min(float(scores[wide]), float(scores[narrow])) == 0


def test_of_one_pixel_a_smaller_kernel_costs_nothing(gated: GatedModel, batches: list[Batch]) -> None:
    scores = ablation(gated, batches, steps=1)
    assert [float(scores[f"layer4.0.conv2.{name}"]) for name in CANDIDATES] == pytest.approx([0, 0], abs=1e-12)


def test_units_of_a_width_add_up_to_what_all_of_them_change(gated: GatedModel, batches: list[Batch]) -> None:
    """Of what the dense network says itself. Steps that seem to help count nothing, so the sum may be more."""
    name = "conv1.0"
    gated = alone(gated, name)
    with torch.no_grad():
        agreed = [(images, gated.fixed(Arch())(images).argmax(1)) for images, _ in batches]
    norms = gated.weights(name)[0].detach().square().sum(1)
    strongest = int(norms.argmax())
    whole = risen(gated, agreed, {name: [strongest]})
    assert whole > 1e-3
    for steps in (1, 5, 500):
        score = ablation(gated, agreed, steps=steps, order="norm")[name]
        assert score.shape == norms.shape
        assert bool((score[norms.argsort()].diff() >= 0).all())
        movable = float(score.sum() - score[strongest])
        assert movable == pytest.approx(whole, rel=1e-6) if steps == 1 else movable >= whole * (1 - 1e-6)


def test_without_batches_or_numbers_there_are_no_scores(gated: GatedModel, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        ablation(gated, [])
    with pytest.raises(DivergedError, match="not a number"):
        ablation(gated, [(batches[0][0] * torch.nan, batches[0][1])])
