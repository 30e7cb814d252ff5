"""Training from scratch: the weights of the search are forgotten, the same seed begins alike."""

import copy
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nas_prune as npr
from nas_prune.base.errors import RecipeError
from nas_prune.train.data.loaders import from_loaders
from nas_prune.train.finetune import finetune, restart
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
