"""Names of rewritten classes in artefacts: files move, and what was made before they did loads."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from artefacts import signed
from torch import nn

import nas_prune as npr
from nas_prune.base.errors import ArtifactError
from nas_prune.base.parts import import_parts
from nas_prune.derivation.source.edits import recorded
from nas_prune.ops import operations

PLACE = "layer1.0.conv2"  # of test_resnet
FILE = '''
"""An operation that reads off its input how wide its inside is, which is true of the dense model only."""

from torch import nn

from nas_prune.ops import Operation, operations


@operations.register("reading")
class Reading(Operation):
    """Two convolutions."""

    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        self.up, self.down = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        """x (b c h w) -> (b c h w)."""
        b, c, h, w = x.shape
        inside = self.up(x).relu().reshape(b, c, h * w).unflatten(2, (h, w))
        return self.down(inside)
'''


@pytest.fixture
def reading(tmp_path: Path) -> type[nn.Module]:
    """The class of the file."""
    file = tmp_path / "here" / "reading.py"
    file.parent.mkdir()
    file.write_text(FILE)
    import_parts([str(file)])
    return operations["reading"]


def derived() -> tuple[nn.Module, torch.Tensor]:
    """A smaller model in which that class is rewritten, and images."""
    model, images = timm.create_model("test_resnet", num_classes=4).eval(), torch.randn(1, 3, 32, 32)
    model.set_submodule(PLACE, operations["reading"](channels=32).eval())
    axes = npr.trace(model, images)
    assert f"{PLACE}.up" in axes.free
    return npr.derive(model, axes, npr.Arch.random(axes)).eval(), images


def renamed(folder: Path, new: str) -> None:
    """Let an artefact tell of its one rewritten class by another name."""

    def change(config: dict[str, Any]) -> None:
        ((_, methods),) = config["rewritten"].items()
        config["rewritten"] = {new: methods}

    signed(folder, change)


def test_an_artefact_that_names_the_file_of_a_class_of_ours_still_loads(
    reading: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "__module__", "nas_prune.ops.reading")
    small, images = derived()
    assert list(recorded(small)) == ["nas_prune.Reading"]
    npr.save(small, tmp_path / "artefact")
    for former in ("nas_prune.ops.attention.Reading", "nas_prune.operations.Reading", "nas_prune.Reading"):
        renamed(tmp_path / "artefact", former)
        with torch.no_grad():
            assert torch.equal(npr.load(tmp_path / "artefact")(images), small(images))
            again = timm.create_model(f"local-dir:{tmp_path / 'artefact'}", pretrained=True).eval()
            assert torch.equal(again(images), small(images))
    for other in ("nas_prune.ops.reading.Writing", "timm.layers.Reading"):
        renamed(tmp_path / "artefact", other)
        with pytest.raises(ArtifactError, match="has no module of class"):
            npr.load(tmp_path / "artefact")


def test_the_file_of_an_operation_of_ones_own_may_lie_elsewhere(reading: type[nn.Module], tmp_path: Path) -> None:
    small, images = derived()
    npr.save(small, tmp_path / "artefact")
    elsewhere = tmp_path / "elsewhere" / "also.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text(FILE)
    del operations._parts["reading"]  # as in another process
    import_parts([str(elsewhere)])
    assert operations["reading"] is not reading
    with torch.no_grad():
        assert torch.equal(npr.load(tmp_path / "artefact")(images), small(images))
