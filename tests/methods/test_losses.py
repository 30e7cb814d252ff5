"""Laws of the losses: each is what torch or a loop over the images says, and finite in its gradient."""

import copy

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import nas_prune as npr
from nas_prune.base.errors import RecipeError
from nas_prune.derivation.timm_facts import read_by_classifier
from nas_prune.methods.losses import Said, losses
from nas_prune.train.objective import Objective, task_loss, teacher_of
from nas_prune.train.settings import OptimSettings

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 2, 3, 4, 0])
SHARES = LOGITS.flip(0).softmax(1)
SAID = Said(LOGITS, teacher=Said(LOGITS.flip(1)))
MAPS = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(1))
OPTIONS = {"auxiliary": {"module": "middle"}}  # options that have no default


@pytest.mark.parametrize("targets", [CLASSES, SHARES], ids=["classes", "shares"])
@pytest.mark.parametrize("name", losses)
def test_every_loss_is_a_finite_number_with_a_finite_gradient(name: str, targets: torch.Tensor) -> None:
    logits = LOGITS.clone().requires_grad_()
    said = Said(logits, {"middle": MAPS}, SAID.teacher)
    part = losses[name](0.1, **OPTIONS.get(name, {}))
    if name in OPTIONS:
        part.begin(nn.Identity(), lambda: said)
    loss = part(said, targets)
    assert loss.ndim == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


def test_cross_entropy_by_hand() -> None:
    by_hand = -sum(
        (0.9 * (klass == index) + 0.1 / 5) * LOGITS[image].log_softmax(0)[index]
        for image, klass in enumerate(CLASSES.tolist())
        for index in range(5)
    )
    torch.testing.assert_close(losses["cross_entropy"](0.1)(SAID, CLASSES), by_hand / 6)
    unsmoothed = -(SHARES * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["cross_entropy"](0.1)(SAID, SHARES), unsmoothed)


def test_binary_cross_entropy_by_hand() -> None:
    present = LOGITS.sigmoid()
    wanted = 0.9 * F.one_hot(CLASSES, 5) + 0.1 / 5
    by_hand = -(wanted * present.log() + (1 - wanted) * (1 - present).log()).mean()
    torch.testing.assert_close(losses["binary_cross_entropy"](0.1)(SAID, CLASSES), by_hand)
    above = (SHARES > 0.2).double()
    by_hand = -(above * present.log() + (1 - above) * (1 - present).log()).mean()
    torch.testing.assert_close(losses["binary_cross_entropy"](0.1, threshold=0.2)(SAID, SHARES), by_hand)


def test_distillation_by_hand() -> None:
    teacher, student = (LOGITS.flip(1) / 3).softmax(1), (LOGITS / 3).softmax(1)
    by_hand = 9 * (teacher * (teacher / student).log()).sum(1).mean()
    torch.testing.assert_close(losses["distillation"](0.0, temperature=3.0)(SAID, CLASSES), by_hand.float())
    assert float(losses["distillation"]()(Said(LOGITS, teacher=Said(LOGITS)), CLASSES)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(RecipeError, match="needs a teacher"):
        losses["distillation"]()(Said(LOGITS), CLASSES)


def test_a_loss_sees_the_features_that_it_names() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    class Sparse(losses["cross_entropy"]):  # type: ignore[misc]
        features = ("1",)

        def forward(self, said: Said, targets: torch.Tensor) -> torch.Tensor:
            return super().forward(said, targets) + said.features["1"].mean()

    images, classes = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    plain = F.cross_entropy(net(images), classes)
    torch.testing.assert_close(Objective(Sparse(0.0))(net, images, classes), plain + net[:2](images).mean())
    assert not net[1]._forward_hooks
    Sparse.features = ("7",)
    with pytest.raises(RecipeError, match="the module '7'"):
        Objective(Sparse(0.0))(net, images, classes)


def test_a_teacher_has_its_share() -> None:
    net = nn.Linear(3, 5)
    images, classes = torch.randn(6, 3), CLASSES
    said = Said(net(images), teacher=Said(LOGITS.float()))
    teacher = Objective(task_loss(OptimSettings()), teacher=lambda *_, **__: said.teacher, share=0.3, temperature=2.0)
    wanted = 0.7 * F.cross_entropy(said.logits, classes) + 0.3 * losses["distillation"](temperature=2.0)(said, classes)
    torch.testing.assert_close(teacher(net, images, classes), wanted)
    assert teacher.state_dict() == {}


def seen(logits: torch.Tensor = LOGITS, maps: torch.Tensor = MAPS) -> Said:
    return Said(logits, {"middle": maps})


@pytest.mark.parametrize("targets", [CLASSES, SHARES], ids=["classes", "shares"])
def test_an_auxiliary_head_that_knows_nothing_adds_its_weight_in_ignorance(targets: torch.Tensor) -> None:
    loss = losses["auxiliary"](0.1, module="middle", weight=0.3)
    loss.begin(nn.Identity(), seen)
    for parameter in loss.head[-1].parameters():
        nn.init.zeros_(parameter)
    plain = losses["cross_entropy"](0.1)(SAID, targets)
    torch.testing.assert_close(loss(seen(), targets), plain + 0.3 * torch.tensor(5.0).log())


def test_an_auxiliary_head_by_hand() -> None:
    loss = losses["auxiliary"](0.1, module="middle").eval()
    loss.begin(nn.Identity(), seen)
    narrow, wide, linear = (loss.head[number].weight for number in (2, 5, 9))
    sizes = [tuple(each.shape) for each in (narrow, wide, linear)]
    assert sizes == [(128, 3, 1, 1), (768, 128, 2, 2), (5, 768)]
    scale = (1 + loss.head[3].eps) ** -0.5  # of a BatchNorm that has seen nothing
    said = []
    for image in MAPS.relu():
        parts = [
            [image[:, rows, columns].mean((1, 2)) for columns in (slice(2), slice(2, 4))]
            for rows in (slice(3), slice(2, 5))
        ]
        mixed = [[(narrow[:, :, 0, 0] @ part * scale).relu() for part in row] for row in parts]
        joined = sum(wide[:, :, row, column] @ mixed[row][column] for row in (0, 1) for column in (0, 1))
        said.append(linear @ (joined * scale).relu() + loss.head[9].bias)
    by_hand = losses["cross_entropy"](0.1)(Said(torch.stack(said)), CLASSES)
    wanted = losses["cross_entropy"](0.1)(SAID, CLASSES) + 0.4 * by_hand
    torch.testing.assert_close(loss(seen(), CLASSES), wanted, rtol=1e-5, atol=0)  # the head computes in float32


def test_an_auxiliary_head_is_made_once_and_again_where_the_features_have_changed() -> None:
    loss = losses["auxiliary"](0.0, module="middle")
    loss.begin(nn.Identity(), seen)
    head = loss.head
    loss(seen(), CLASSES)
    assert loss.head is head
    loss.begin(nn.Identity(), lambda: seen(maps=MAPS[:, :2]))
    assert loss.head[2].in_channels == 2
    with pytest.raises(RecipeError, match=r"images of features .* name another module"):
        loss.begin(nn.Identity(), lambda: seen(maps=MAPS.flatten(1)))


def test_what_a_classifier_reads_is_imitated_in_the_units_that_are_left() -> None:
    dense, images = timm.create_model("test_resnet", num_classes=5).eval(), torch.randn(6, 3, 32, 32)
    axes = npr.trace(dense, images)
    arch = npr.Arch.random(axes, keep=0.5)
    units = read_by_classifier(dense, axes, arch)
    assert units is not None
    assert len(units) < dense.num_features
    pupil = npr.derive(dense, axes, arch)
    objective = Objective(
        task_loss(OptimSettings()), teacher=teacher_of(dense, Accelerator(cpu=True), units), features=7.0
    )
    wanted = dense.forward_head(dense.forward_features(images), pre_logits=True)[:, units]
    read = pupil.forward_head(pupil.forward_features(images), pre_logits=True)
    far = (read - wanted).square().sum() / wanted.square().sum()
    expected = F.cross_entropy(pupil(images), CLASSES) + 7 * far
    torch.testing.assert_close(objective(pupil, images, CLASSES), expected)
    assert not any(module._forward_pre_hooks for module in (*pupil.modules(), *dense.modules()))


def test_a_pupil_that_lacks_nothing_is_told_nothing_and_a_model_without_a_classifier_is_refused() -> None:
    dense, images = timm.create_model("test_vit", num_classes=5).eval(), torch.randn(2, 3, 160, 160)
    axes = npr.trace(dense, images)
    assert read_by_classifier(dense, axes, npr.Arch()) is None
    teacher = teacher_of(copy.deepcopy(dense), Accelerator(cpu=True))
    plain, taught = (
        Objective(task_loss(OptimSettings()), teacher=teacher, features=weight)(dense, images, CLASSES[:2])
        for weight in (0.0, 9.0)
    )
    torch.testing.assert_close(plain, taught)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RecipeError, match="no layer that says the classes"):
        read_by_classifier(net, npr.trace(net, torch.randn(2, 3)), npr.Arch())
