"""On two processes: gradients are means over both, what is counted is counted over both, and both stay alike."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses import Said
from nas_prune.methods.penalties.manifold import ManifoldPenalty
from nas_prune.tracing.arch import Arch

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    """Two convolutions and a classifier, the same everywhere."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    return nn.Sequential(*parts)


def both() -> tuple[nn.Module, nn.Module]:
    """A gated model, and one that is derived."""
    plain = model()
    axes = trace(plain, IMAGES)
    return GatedModel(model(), axes, "sigmoid"), derive(plain, axes, Arch({"0": range(5), "2": range(1, 4)}))


def stepped(trained: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The parameters after one step."""
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    trained(images).square().mean().backward()
    optimizer.step()
    return {name.removeprefix("module."): each.detach().clone() for name, each in trained.named_parameters()}


def half(rank: int, folder: str) -> None:
    """One of two processes, with half of the images."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=60), 2, rank)
    found = [stepped(DistributedDataParallel(each), IMAGES[2 * rank : 2 * rank + 2]) for each in both()]
    torch.save(found, f"{folder}/{rank}.pt")
    wrapped = DistributedDataParallel(model())
    axes = trace(wrapped, IMAGES)
    assert set(axes.free) == {"0", "2"}
    verify(wrapped, axes, Arch.random(axes), IMAGES)
    torch.distributed.destroy_process_group()


@pytest.mark.zoo
def test_two_processes_step_as_one(tmp_path: Path) -> None:
    mp.spawn(half, (str(tmp_path),), nprocs=2)
    expected = [stepped(each, IMAGES) for each in both()]
    for rank in range(2):
        for got, want in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert got.keys() == want.keys()
            for name, value in got.items():
                torch.testing.assert_close(value, want[name], rtol=0, atol=1e-6)


LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 4


def usual_of(batches: list[Tensor]) -> list[float]:
    """The usual loss of an image after each of three epochs of two batches."""
    penalty, found = ManifoldPenalty(), []
    for epoch in range(3):
        for step in range(2):
            penalty.advance(epoch + step / 2)
            each = batches[step]
            penalty.hear(Said((1 + epoch) * LOGITS[each]), LABELS[each])
        found.append(float(penalty.usual))
    return found


def heard(rank: int, folder: str) -> None:
    """One of two processes, with a third of the images or two."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=60), 2, rank)
    mine = torch.arange(4) if rank else torch.arange(4, 12)
    torch.save(usual_of(list(mine.chunk(2))), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.zoo
def test_the_usual_loss_of_an_image_is_that_of_the_images_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(heard, (str(tmp_path),), nprocs=2)
    expected = usual_of(list(torch.arange(12).chunk(2)))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-6)
