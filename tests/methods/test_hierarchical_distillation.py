"""Hierarchical self-distillation: the loss of the paper's equation, heads on stages, and what becomes of them."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Traced, apart, build, traced

from nas_prune.artifact.folder import load, save
from nas_prune.base.errors import RecipeError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses import Said
from nas_prune.methods.losses.hierarchical_distillation import HierarchicalDistillation
from nas_prune.run.recipe.recipe import read
from nas_prune.run.rehearsal.rehearse import rehearse
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data.loaders import from_loaders
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run, fit
from nas_prune.train.objective import Objective
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.settings import OptimSettings, SearchSettings
from nas_prune.train.stage import Stage

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(8)
NAME = "hierarchical_distillation"


class Stages(nn.Module):
    """Two stages before a classifier, in timm's words."""

    feature_info = tuple({"module": f"stage.{n}", "num_chs": 6, "reduction": 2**n} for n in range(3))
    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(*(nn.Conv2d(3 if n == 0 else 6, 6, 1) for n in range(3)))
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stage(x).mean((2, 3)))


def never() -> Said:
    """This loss has no need to look."""
    raise AssertionError


def loss_of(backbone: nn.Module, **options: object) -> HierarchicalDistillation:
    """The loss, with heads on the stages of a backbone."""
    torch.manual_seed(0)
    loss = HierarchicalDistillation(0.1, **options)  # type: ignore[arg-type]
    loss.begin(backbone, never)
    return loss


@pytest.fixture
def said() -> tuple[HierarchicalDistillation, Said]:
    """The loss of the small network, and what that said of eight images."""
    torch.manual_seed(1)
    loss = loss_of(Stages().double())
    maps = {path: torch.randn(8, 6, 4, 4).double() for path in loss.features}
    return loss, Said(torch.randn(8, 5).double().requires_grad_(), maps)


@pytest.mark.parametrize(("a", "temperature"), [(0.2, 1.0), (0.7, 3.0)])
def test_the_loss_is_that_of_the_equation(
    said: tuple[HierarchicalDistillation, Said], a: float, temperature: float
) -> None:
    loss, heard = said
    loss.a, loss.temperature, classes = a, temperature, LABELS % 5
    logits = [heard.logits]
    for path in loss.features:
        pooled = heard.features[path].mean((2, 3))
        normal = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
        head = loss.heads[path.replace(".", "/")]
        logits.append(normal @ head.weight.T + head.bias)
    by_hand = torch.zeros(()).double()
    for image, klass in enumerate(classes.tolist()):
        for number, each in enumerate(logits):
            told = each[image].log_softmax(0)
            by_hand -= (1 - a) * (0.9 * told[klass] + 0.1 * told.mean()) / 8
            teacher, student = ((z[image] / temperature).softmax(0) for z in (logits[0], each))
            by_hand += a * temperature**2 * (teacher * (teacher / student).log()).sum() * (number > 0) / 8
    torch.testing.assert_close(loss(heard, classes), by_hand)


def test_stages_that_agree_have_nothing_to_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, logits = loss_of(Stages()), torch.randn(8, 5)
    monkeypatch.setattr(loss, "said_by", lambda *_: logits)
    alone = F.cross_entropy(logits, LABELS % 5, label_smoothing=0.1)
    heard = Said(logits, dict.fromkeys(loss.features, logits))
    torch.testing.assert_close(loss(heard, LABELS % 5), (1 - 0.2) * 3 * alone)


def test_known_cases(said: tuple[HierarchicalDistillation, Said]) -> None:
    (loss, heard), classes = said, LABELS % 5
    alone = F.cross_entropy(heard.logits, classes, label_smoothing=0.1)
    torch.testing.assert_close(HierarchicalDistillation(0.1)(Said(heard.logits), classes), 0.8 * alone)  # one stage
    supervised = alone + sum(
        F.cross_entropy(loss.said_by(path, heard.features[path]), classes, label_smoothing=0.1)
        for path in loss.features
    )
    loss.a = 0.0
    torch.testing.assert_close(loss(heard, classes), supervised)
    loss.a, loss.warmup = 0.2, 4
    loss.steps.zero_()
    torch.testing.assert_close(loss(heard, classes), supervised)  # a grows from 0
    rising = [float(loss(heard, classes).detach()) for _ in range(5)]
    assert rising[-1] == rising[-2]
    assert len(set(rising)) == 4
    loss.eval()
    assert float(loss(heard, classes).detach()) == rising[-1]
    assert int(loss.steps) == 6


def test_a_detached_teacher_hears_the_labels_alone(said: tuple[HierarchicalDistillation, Said]) -> None:
    (loss, heard), classes = said, LABELS % 5
    alone = 0.8 * F.cross_entropy(heard.logits, classes, label_smoothing=0.1)
    (wanted,) = torch.autograd.grad(alone, heard.logits, retain_graph=True)
    (drawn,) = torch.autograd.grad(loss(heard, classes), heard.logits)
    loss.detach_teacher = True
    (detached,) = torch.autograd.grad(loss(heard, classes), heard.logits)
    torch.testing.assert_close(detached, wanted)
    assert apart(wanted, drawn) > 1e-3


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ("layer1", "layer2", "layer3")),
        ("test_efficientnet", ("blocks.0", "blocks.1", "blocks.2", "blocks.3")),
        ("densenet121", ("features.norm0", "features.denseblock1", "features.denseblock2", "features.denseblock3")),
    ],
)
def test_a_head_for_the_last_module_of_each_resolution_but_the_deepest(name: str, stages: tuple[str, ...]) -> None:
    net = build(name).double()
    loss = loss_of(net)
    assert loss.features == stages
    value = Objective(loss)(net.train(), IMAGES, LABELS)
    value.backward()
    assert all(bool(head.weight.grad.abs().max() > 0) for head in loss.heads.values())
    assert not any("head" in name and name in dict(net.named_parameters()) for name in loss.state_dict())


def test_stages_are_named_where_there_is_one_resolution() -> None:
    net = build("test_vit").double()
    with pytest.raises(RecipeError, match="one resolution"):
        loss_of(net)
    with pytest.raises(RecipeError, match=r"no 'blocks.x'"):
        loss_of(net, stages=["blocks.x"])
    loss = loss_of(net, stages=["blocks.1", "blocks.3"])
    Objective(loss)(net.train(), IMAGES, LABELS).backward()
    assert loss.features == ("blocks.1", "blocks.3")
    assert loss.heads["blocks/1"].weight.shape == (10, 64)
    with pytest.raises(RecipeError, match="there are none"):
        loss_of(nn.Linear(3, 4))


def test_a_stage_that_is_not_there_is_told_before_a_run_begins() -> None:
    net, named = traced("test_resnet"), "{name: hierarchical_distillation, options: {stages: [layer9]}}"
    wrong = read("smoke/fashion_mnist_resnet18_hierarchical_distillation", [f"finetune.loss={named}"])
    with pytest.raises(RecipeError, match=r"no 'layer9'"):
        rehearse(wrong, net.fresh(), SearchSpace.read("channels", net.axes), net.images)


def test_channels_last_maps_are_pooled_over_places() -> None:
    net = Stages()
    net.output_fmt = "NHWC"  # as timm's swin says
    loss, maps = loss_of(net), torch.randn(4, 3, 2, 6)
    wanted = loss.heads["stage/0"](F.batch_norm(maps.mean((1, 2)), None, None, training=True))
    torch.testing.assert_close(loss.said_by("stage.0", maps), wanted)


def test_the_artefact_has_no_head_and_says_what_the_deepest_stage_said(tmp_path: Path) -> None:
    net = build("test_resnet").train()
    before = copy.deepcopy(net)
    loss = loss_of(net)
    Objective(loss)(net, IMAGES.float(), LABELS)
    with torch.no_grad():
        assert torch.equal(net.eval()(IMAGES.float()), _after_one_pass(before))
    assert net.state_dict().keys() == before.state_dict().keys()
    save(net, tmp_path / "net", origin=("test_resnet", {"num_classes": 10}))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net")(IMAGES.float()), net(IMAGES.float()))


def _after_one_pass(net: nn.Module) -> Tensor:
    """What a network says after a look in training, without heads."""
    with torch.no_grad():
        net(IMAGES.float())
        return net.eval()(IMAGES.float())


def step(learner: Learner, gated: GatedModel) -> None:
    """One step of a search."""
    loss = Objective(learner.loss, gated=gated)(gated.train(), IMAGES, LABELS)
    learner.optimizers[0].zero_grad()
    loss.backward()
    learner.optimizers[0].step()


def test_heads_go_on_with_what_is_left_of_their_stages() -> None:
    net = traced("test_resnet")
    settings = SearchSettings.model_validate({"lr": 0.02, "momentum": 0.9, "loss": {"name": NAME}})
    one = GatedModel(net.double(), net.axes, "mask").double()
    two = copy.deepcopy(one)
    closing, removing = Learner(one, settings, None), Learner(two, settings, None)
    for learner in (closing, removing):
        torch.manual_seed(0)
        learner.objective().begin(learner.gated, never)
        learner.optimizers[0].add_param_group({"params": [*learner.loss.parameters()]})
        for _ in range(2):
            step(learner, learner.gated)
    kept = Traced(two.backbone, two.axes, IMAGES).random(0.5, seed=1)
    removing.remove(kept)
    heads = list(removing.loss.heads.values())
    trained = {each for group in removing.optimizers[0].param_groups for each in group["params"]}
    assert {head.weight for head in heads} <= trained
    for name, axis in one.space.free.items():
        one.gate(name).keep.copy_(kept.keep(axis))
    narrow = [info["num_chs"] for info in removing.gated.backbone.feature_info[1:4]]
    assert [head.weight.shape[1] for head in heads] == narrow
    assert all(now < before.weight.shape[1] for now, before in zip(narrow, closing.loss.heads.values(), strict=True))
    for _ in range(2):
        for learner in (closing, removing):
            step(learner, learner.gated)
    with torch.no_grad():
        assert apart(one.eval()(IMAGES), removing.gated.eval()(IMAGES)) <= 1e-9


def test_a_loss_sees_closed_units_as_zeros() -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.double(), net.axes, "mask").double().eval()
    kept = net.random(0.5)
    loss = loss_of(gated.backbone)
    objective = Objective(loss)
    with gated.fixed(kept) as fixed:
        closed = objective(fixed, IMAGES, LABELS)
    for name, axis in gated.space.free.items():
        gated.gate(name).keep.copy_(kept.keep(axis))
    torch.testing.assert_close(objective(gated, IMAGES, LABELS), closed, rtol=1e-12, atol=0)
    dense = objective(gated.plain(), IMAGES, LABELS)
    assert apart(dense.detach(), closed.detach()) > 1e-3
    for path in loss.features:
        maps = torch.ones(8, loss.heads[path].in_features, 4, 4).double()
        assert 0 < int(gated.seen(path, maps)[0, :, 0, 0].count_nonzero()) < maps.shape[1]


def test_heads_learn_by_the_schedule_and_are_in_the_checkpoint(tmp_path: Path) -> None:
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)
    data, settings = from_loaders(loader, loader, classes=10), OptimSettings(lr=0.01)
    run = Run(Accelerator(cpu=True), folder=tmp_path)
    net = build("test_resnet")
    ends = []
    for _ in range(2):  # the second time all is in the checkpoint
        loss, optimizer = HierarchicalDistillation(0.0), optimizer_of(net, settings)
        fit(run, Stage("finetune", 1, settings), net, data, Objective(loss), [optimizer])
        heads = {parameter for head in loss.heads.values() for parameter in head.parameters()}
        (group,) = (group for group in optimizer.param_groups if set(group["params"]) == heads)
        assert group["initial_lr"] == 0.01
        assert group["lr"] == optimizer.param_groups[0]["lr"]
        ends.append({name: value.clone() for name, value in loss.state_dict().items()})
    assert int(ends[0]["steps"]) == 2
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_last_batch_of_one_image_is_learnt_by_the_model_alone(tmp_path: Path) -> None:
    images, labels, net = torch.randn(5, 3, 4, 4), torch.arange(5), Stages()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    data, settings, loss = (
        from_loaders(loader, loader, classes=5),
        OptimSettings(lr=0.01),
        HierarchicalDistillation(0.0),
    )
    run = Run(Accelerator(cpu=True), folder=tmp_path)
    fit(run, Stage("finetune", 2, settings), net, data, Objective(loss), [optimizer_of(net, settings)])
    assert int(loss.steps) == 4
    alone = Objective(loss)(net.train(), images[:1], labels[:1])
    torch.testing.assert_close(alone, 0.8 * F.cross_entropy(net(images[:1]), labels[:1]))
