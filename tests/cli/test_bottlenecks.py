"""Laws of the report of bottlenecks: what has gone is counted, and what is widened computes what it did."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from zoo import apart

from nas_prune.base.axis import Axis
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import dump
from nas_prune.cli import program as cli
from nas_prune.cli.doctor.bottlenecks import Layer, bottlenecks, widened
from nas_prune.derivation.replace import laid_out
from nas_prune.methods.gated import GatedModel
from nas_prune.run.pipeline import _write_axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace, SpaceFile, read_file

WHOLE, HALF, CLOSED = "layer2.0.conv1", "layer2.0.conv2", "layer1.0"


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """Widths and depth of a small network."""
    model = timm.create_model("test_resnet", num_classes=10).eval()
    return laid_out(model, torch.randn(2, 3, 32, 32), "widths_and_depth")


@pytest.fixture
def folder(space: SearchSpace, tmp_path: Path) -> Path:
    """A run folder in which a search has kept all of one layer, none of a block, and half of everything else."""
    kept = {name: range(axis.size if name == WHOLE else axis.size // 2) for name, axis in space.alone.items()}
    kept |= {name: range(1) for name, axis in space.free.items() if axis.kind == "depth"}
    Arch({**kept, f"{CLOSED}.depth": []}).write(tmp_path / "arch.json")
    _write_axes(space, tmp_path)
    recipe = (shipped("recipes") / "smoke" / "digits_w_gates.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(f"{recipe}\nspace: widths_and_depth\n")
    return tmp_path


def run(*words: object) -> int:
    """Exit code of the program."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["doctor", *map(str, words)])
    return int(exit_.value.code or 0)


def layer(name: str, size: int, kept: int) -> Layer:
    """A layer of the report."""
    return Layer(Axis(name, "channel", size, ()), kept)


def test_of_a_bottleneck_less_than_half_of_the_median_share_has_gone() -> None:
    found = [layer("a", 100, 90), layer("b", 10, 5), layer("c", 64, 16), layer("d", 40, 31), layer("e", 8, 4)]
    assert bottlenecks(found) == ["a", "d"]  # 10 and 22.5 % have gone; the median is 50 %
    assert bottlenecks([layer("a", 8, 8), layer("b", 8, 8)]) == []
    assert bottlenecks([]) == []


def test_the_report_counts_what_has_gone_of_layers_that_are_still_there(
    folder: Path, space: SearchSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--bottlenecks", "--json", "-") == 0
    rows = {row["axis"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    widths = {name for name, axis in space.alone.items() if axis.kind == "channel"}
    inside = {name for name in widths if name.startswith(f"{CLOSED}.")}
    assert rows.keys() == widths - inside
    assert len(inside) >= 1
    assert [name for name, row in rows.items() if row["bottleneck"]] == [WHOLE]
    assert (rows[WHOLE]["gone"], rows[HALF]["gone"]) == (0, 0.5)
    assert run(folder, "--bottlenecks") == 0
    assert "bottleneck" in capsys.readouterr().out


def test_what_is_widened_computes_what_it_did_with_twice_the_units(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "--bottlenecks", "--widen", tmp_path / "wider.yaml") == 0
    model, images = timm.create_model("test_resnet", num_classes=10).double().eval(), torch.randn(2, 3, 32, 32).double()
    given, usual = copy.deepcopy(model), model.get_submodule(WHOLE).out_channels
    space = laid_out(model, images, str(tmp_path / "wider.yaml"))
    assert {name: axis.size for name, axis in space.free.items() if axis.given} == {WHOLE: 2 * usual}
    with torch.no_grad():
        assert apart(given(images), GatedModel(model, space)(images)) <= 1e-12


def test_a_rule_that_decided_still_does_but_for_the_units() -> None:
    file = read_file("channels")
    axis = Axis("stage.0.conv1", "channel", 32, ())
    rule = widened(file, [axis]).rule(axis)
    assert rule is not None
    assert rule.model_dump(exclude={"match", "widen"}) == file.rules[0].model_dump(exclude={"match", "widen"})
    again = widened(SpaceFile.model_validate({"rules": [{"widen": 10.0}]}), [axis]).rule(axis)
    assert (rule.widen, again and again.widen) == (2, 16)
    assert read_file("channels") == file


def test_what_cannot_be_reported_is_an_error_that_says_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--bottlenecks", "--space", "depth") == 2
    assert "leave out --space" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(dump({"name": "none"}))
    (folder / "arch.json").unlink()
    assert run(folder, "--bottlenecks") == 2
    assert "no arch.json" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", "--bottlenecks") == 2
    assert "no run in" in capsys.readouterr().err
