"""Training from scratch: the weights of the search are forgotten, the same seed begins alike."""

import copy
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nas_prune as npr
from nas_prune.base.errors import RecipeError
from nas_prune.train.data.loaders import from_loaders, load, set_epoch
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.finetune import finetune, recalibrate, restart
from nas_prune.train.loop import Run
from nas_prune.train.settings import FinetuneSettings


@cache
def derived() -> nn.Module:
    """A derived model whose weights and statistics a search has moved."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    axes = npr.trace(model, torch.randn(2, 3, 32, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.train()(torch.randn(8, 3, 32, 32))
    return npr.derive(model.eval(), axes, npr.Arch.random(axes, 0.5, generator=torch.Generator().manual_seed(0)))


def searched() -> nn.Module:
    """A copy of that model."""
    return copy.deepcopy(derived())


def test_every_weight_and_statistic_begins_anew_and_the_shapes_stay() -> None:
    model = searched()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    restart(model, 0)
    after = model.state_dict()
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    assert not any(torch.equal(value, before[name]) for name, value in after.items())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.running_mean == 0).all() and (norm.running_var == 1).all()) for norm in norms)
    last = model.get_submodule("layer1.0.bn2")
    assert bool((last.weight == 0).all())  # so timm's own init_weights begins a residual branch


def test_the_same_seed_begins_alike_and_the_random_state_stays() -> None:
    one, other, third = searched(), searched(), searched()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    restart(one, 1)
    assert torch.equal(torch.rand(3), expected)
    restart(other, 1)
    restart(third, 2)
    assert torch.equal(one.conv1[0].weight, other.conv1[0].weight)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.conv1[0].weight, third.conv1[0].weight)


def test_a_weight_that_nothing_begins_is_an_error_and_changes_nothing() -> None:
    model = timm.create_model("test_convnext")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=r"from_scratch: ConvNeXt does not say how stages.0.blocks.0.gamma"):
        restart(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("from_scratch", [False, True])
def test_fine_tuning_from_scratch_trains_the_derived_architecture_which_loads(
    tmp_path: Path, from_scratch: bool
) -> None:
    model = searched()
    weight = model.get_parameter("conv1.0.weight").detach().clone()
    images = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    loader = DataLoader(images, batch_size=4)
    settings = FinetuneSettings(epochs=1, lr=1e-6, from_scratch=from_scratch, recalibrate_batches=1)
    finetune(model, None, from_loaders(loader, loader, classes=3), settings=settings, run=Run(Accelerator(cpu=True)))
    moved = float((model.get_parameter("conv1.0.weight").detach() - weight).abs().mean())
    assert (moved > 0.1) == from_scratch
    npr.save(model.eval(), tmp_path / "artefact")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(npr.load(tmp_path / "artefact")(x), model(x))


@pytest.mark.parametrize("batches", [3, 8, 19])
def test_statistics_are_the_mean_over_the_batches_of_as_many_epochs_as_it_takes_and_few_are_held(batches: int) -> None:
    images, made, alive = torch.randn(16, 3, 4, 4), list[weakref.ref[Tensor]](), list[int]()

    def collate(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        batch = [torch.stack(part) for part in zip(*pairs, strict=True)]
        made.append(weakref.ref(batch[0]))
        return batch

    norm = nn.BatchNorm2d(3)
    norm.register_forward_hook(lambda *_: alive.append(sum(each() is not None for each in made)))
    loader = DataLoader(TensorDataset(images, torch.zeros(16).long()), batch_size=2, collate_fn=collate)
    data = from_loaders(loader, loader, classes=2)
    recalibrate(norm, data, Run(Accelerator(cpu=True)), batches)
    assert len(alive) == batches
    assert max(alive) <= 3
    seen = [images[2 * (batch % 8) :][:2] for batch in range(batches)]
    assert torch.allclose(norm.running_mean, torch.stack([each.mean((0, 2, 3)) for each in seen]).mean(0), atol=1e-6)
    assert norm.momentum == 0.1


def test_a_later_epoch_of_a_loader_has_an_order_of_its_own_and_an_empty_one_ends() -> None:
    data, first = load(DataSettings(name="generated", image_size=8, batch_size=16), seed=0), list[Tensor]()
    norm = nn.BatchNorm2d(3)
    norm.register_forward_pre_hook(lambda _, given: first.append(given[0]))
    each = len(data.train)
    recalibrate(norm, data, Run(Accelerator(cpu=True)), 2 * each)
    for epoch in (0, 1):
        set_epoch(data.train, epoch)
        assert all(torch.equal(one, x) for one, (x, _) in zip(first[epoch * each :], data.train, strict=False))
    assert not torch.equal(first[0], first[each])
    empty = replace(data, train=DataLoader(TensorDataset(torch.empty(0, 3, 8, 8), torch.empty(0))))
    recalibrate(norm, empty, Run(Accelerator(cpu=True)), 5)
    assert len(first) == 2 * each
