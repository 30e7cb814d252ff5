"""Laws of widening: the very function, more units, which learn; the dense network is the one that was given."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from zoo import apart, few, traced

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import RecipeError, SpaceError
from nas_prune.costs import Macs, count
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import laid_out
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.derivation.widening import unwidenable, widen
from nas_prune.methods.gated import GatedModel
from nas_prune.run import pipeline
from nas_prune.run.recipe.recipe import read
from nas_prune.tracing.arch import Arch

SPACE = """
description: wider
rules:
  - {divisor: 2, widths: 1, minimum: 0.1}
  - {match: 'layer*.conv1', widen: 1.5}
"""
NETS = ("test_resnet", "test_efficientnet", "test_vit")


@pytest.mark.parametrize("name", few((*NETS, "densenet121", "mobilenetv2_050"), ("test_resnet",)))
def test_a_wider_model_computes_the_same_and_learns_in_its_new_units(name: str) -> None:
    net = traced(name)
    model, images = net.double(), net.images.double()
    expected = model(images).detach()
    names = [name for name, axis in net.axes.free.items() if unwidenable(net.axes, name, axis.size) is None]
    wider = {name: net.axes[name].size + 6 for name in names}
    assert len(wider) >= 2
    widen(model, net.axes, wider)
    assert apart(expected, model(images).detach()) <= 1e-9
    again = trace(model, images)
    assert {name: again[name].size for name in wider} == wider
    model(images).square().mean().backward()
    member = next(each for each in net.axes[names[0]].members if each.role == "read")
    new = model.get_parameter(member.tensor).grad.movedim(member.dim, 0)[-1]
    assert bool(new.abs().max() > 0), "what reads a new unit learns"


def test_units_that_are_looked_at_together_are_not_widened() -> None:
    net = traced("test_vit")
    names = [name for name in net.axes.free if unwidenable(net.axes, name, 999)]
    assert "blocks.0.attn.qkv.head_dim" in names
    with pytest.raises(SpaceError, match="looks at its units together"):
        widen(net.fresh(), net.axes, {"blocks.0.attn.qkv.head_dim": 999})
    with pytest.raises(SpaceError, match="it has"):
        widen(net.fresh(), net.axes, {"blocks.0.mlp.fc1": 1})


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A space that widens."""
    path = tmp_path / "wider.yaml"
    path.write_text(SPACE)
    return path


def test_the_dense_network_is_the_one_that_was_given(space: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=10).eval()
    given, images = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    wide = laid_out(model, images, str(space))
    name, width = "layer2.0.conv1", given.get_submodule("layer2.0.conv1").out_channels
    assert (wide.free[name].size, wide.free[name].dense) == (int(1.5 * width), width)
    assert float(Macs(wide.axes)({})) == count(given, images).macs
    with torch.no_grad():
        assert torch.equal(derive(model, wide.axes, Arch())(images), given(images))
        assert apart(given(images), GatedModel(model, wide)(images)) <= 1e-5
    arch = Arch.random(wide.free, 0.6, generator=torch.Generator().manual_seed(0))
    assert verify(model, wide.axes, arch, images).max_rel_error <= 1e-9


def by_timm(folder: Path) -> nn.Module:
    """The artefact, loaded by timm."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.zoo
def test_a_recipe_that_widens_ends_in_an_artefact_that_loads(space: Path, tmp_path: Path) -> None:
    changes = [f"space={space}", "dense.epochs=0", "budget.cost=macs", "budget.target=0.8x", "latency.samples=12"]
    results, images = pipeline.run(read("smoke/digits_w_gates", changes), tmp_path / "run"), torch.randn(1, 3, 32, 32)
    assert results["status"] == "met"
    assert results["dense"]["macs"] == count(timm.create_model("test_resnet", num_classes=10), images).macs
    for small in (artifact.load(tmp_path / "run" / "finetuned"), by_timm(tmp_path / "run" / "finetuned")):
        assert count(small, images).macs == results["finetuned"]["macs"]
    with pytest.raises(RecipeError, match="after dense training"):
        pipeline.run(read("smoke/digits_w_gates", [f"space={space}"]), tmp_path / "other")
