"""Laws of the structural workflow: train with the penalty, swap, and the network computes nearly what it did."""

from pathlib import Path

import pytest
import torch
from descriptions import STRUCTURED_SPACE
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils.data import DataLoader, TensorDataset

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget, Macs
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import laid_out
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, Mover, movers
from nas_prune.methods.penalties.structural import StructuralPenalty
from nas_prune.methods.schedules import schedules
from nas_prune.ops.choice import choices_of
from nas_prune.tracing.arch import Arch
from nas_prune.train.search import search
from nas_prune.train.settings import MoverSettings, SearchSettings

LAYERS = {"*.candidates.dense.convolution": {"kernel": 2}}
IMAGE, CLASSES = (1, 12, 12), 6


@pytest.fixture
def space_file(tmp_path: Path) -> str:
    path = tmp_path / "structured.yaml"
    path.write_text(STRUCTURED_SPACE)
    return str(path)


def gated_net(space_file: str, gate: str = "mask") -> GatedModel:
    """Two convolutions with norms, each of which may become a structured one."""
    torch.manual_seed(0)
    narrow = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    wide = [nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*narrow, *wide, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))
    return GatedModel(net, laid_out(net, torch.randn(2, *IMAGE), space_file), gate)


def inheriting(gated: GatedModel) -> Mover:
    return movers["inheriting"](gated, Aim(Budget("0.5x", Macs(gated.axes)), 3, schedules["ghfp"]))


def all_swapped(gated: GatedModel) -> Arch:
    """Every convolution a structured one."""
    names = [name for names in gated.space.choices.values() for name in names]
    return Arch({name: range(int(name.endswith("structured"))) for name in names})


def blurred(alpha: Tensor) -> Tensor:
    """alpha (o i n n) -> (o i n+1 n+1): the structured kernel, a sum of shifted 2x2 boxes."""
    boxes = alpha.new_ones(1, 1, 2, 2)
    return conv2d(alpha.flatten(0, 1)[:, None], boxes, padding=1).unflatten(0, alpha.shape[:2])[:, :, 0]


def test_while_it_learns_the_network_is_the_dense_one(space_file: str) -> None:
    gated, x = gated_net(space_file).eval(), torch.randn(4, *IMAGE)
    dense, mover = gated.fixed(Arch())(x), inheriting(gated)
    for epoch in range(2):
        assert torch.equal(gated(x), dense)
        gated.fixed(Arch())(x)  # an evaluation, after which all candidates compute
        mover.begin_epoch(epoch)
    gated(x).sum().backward()
    for choice in choices_of(gated.backbone):
        first, other = (each.convolution.weight for each in choice.candidates.values())
        assert first.grad is not None
        assert other.grad is None
    mover.finished()
    assert not torch.equal(gated(x), dense)


def test_a_kernel_that_is_structured_is_swapped_exactly(space_file: str) -> None:
    gated, x = gated_net(space_file).double().eval(), torch.randn(4, *IMAGE).double()
    mover, before = inheriting(gated), gated.fixed(Arch())(x)
    for choice in choices_of(gated.backbone):
        first, other = (each.convolution.weight for each in choice.candidates.values())
        with torch.no_grad():
            first.copy_(blurred(torch.randn_like(other)))
    mover.finished()
    with torch.no_grad():
        penalised = gated.fixed(Arch())(x)
        swapped = derive(gated.backbone, gated.axes, all_swapped(gated))(x)
    assert not torch.allclose(penalised, before)
    torch.testing.assert_close(swapped, penalised, rtol=0, atol=1e-9)


def accuracies(space_file: str, alpha: float) -> tuple[float, float]:
    """Of a network trained with this much of the penalty: before the swap, and right after it."""
    gated, generator = gated_net(space_file), torch.Generator().manual_seed(1)
    labels = torch.arange(192) % CLASSES
    images = torch.randn(CLASSES, *IMAGE, generator=generator)[labels] + torch.randn(192, *IMAGE, generator=generator)
    batches = DataLoader(TensorDataset(images, labels), 16, shuffle=True, generator=generator)
    swapped, cost = all_swapped(gated), Macs(gated.axes)
    budget = Budget(f"{float(cost(swapped.sizes(gated.space.free))) / float(cost({}))}x", cost)
    how = SearchSettings(warmup=0, joint=8, freeze=0, lr=0.05, mover=MoverSettings(name="inheriting"))
    penalties = [StructuralPenalty(layers=LAYERS, alpha=alpha)]
    arch = search(gated, batches, budget=budget, penalties=penalties, settings=how)
    assert arch.sizes(gated.space.free) == swapped.sizes(gated.space.free)
    small = derive(gated.backbone, gated.axes, arch).eval()
    with torch.no_grad():
        said = [model(images) for model in (gated.eval().fixed(Arch()), small)]
    before, after = (float((each.argmax(1) == labels).double().mean()) for each in said)
    return before, after


def test_a_swap_keeps_the_accuracy_of_a_penalised_network_alone(space_file: str) -> None:
    before, after = accuracies(space_file, alpha=5.0)
    assert before > 0.9
    assert after > before - 0.02
    before, after = accuracies(space_file, alpha=0.0)
    assert before > 0.9
    assert after < before - 0.2


def test_gates_that_learn_are_refused(space_file: str) -> None:
    with pytest.raises(SpaceError, match=r"gate\.kinds\.operation\.name, to mask"):
        inheriting(gated_net(space_file, "softmax"))
