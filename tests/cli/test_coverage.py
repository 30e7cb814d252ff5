"""Families of timm beyond those of the laws: seven here, a dozen with ``-m zoo``, all 98 modules with ``-m slow``."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from zoo import apart, few, traced_model

from nas_prune.base.files.whole import append_line
from nas_prune.cli.coverage import names as coverage_names
from nas_prune.cli.coverage.command import page, summary
from nas_prune.cli.coverage.examine import Case, cases, examine
from nas_prune.cli.coverage.names import examine_name
from nas_prune.costs import Macs, count
from nas_prune.derivation.derive import derive
from nas_prune.derivation.verify import allowed
from nas_prune.methods.gated import GatedModel

REACH = 0.45
BEYOND = {  # less can be left, and why
    "eva": "the table of its rotary embedding fixes head_dim of queries and keys",
    "gemma4_vit": "its output is the embedding, and the table of its rotary embedding fixes head_dim",
    "deepseek_vit": "its output is the embedding, and the table of its rotary embedding fixes head_dim",
    "qwen3_vit": "its output is the embedding, and the table of its rotary embedding fixes head_dim",
}
DOZEN: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (1, 2),
        "num_heads": (2, 4),
    },
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2, "cls_attn_layers": 1},
    "twins_svt_small": {"img_size": 64, "embed_dims": (16, 32, 32, 32), "depths": (2, 1, 1, 1)},
    "skresnet18": {},
    "resnest14d": {},
    "test_nfnet": {},
    "starnet_s050": {},
    "cs3darknet_focus_s": {},
    "edgenext_xx_small": {"depths": (1, 1, 2, 1)},
    "efficientvit_b0": {"depths": (1, 1, 1, 1)},
    "test_mambaout": {},
}
# each runs lines of the package that neither the backbones of the laws nor the modules of users run
TWO = ("swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224")


@pytest.mark.parametrize("name", few(DOZEN, TWO))
def test_a_family_is_exact_and_small(name: str) -> None:
    torch.manual_seed(0)
    net = traced_model(timm.create_model(name, num_classes=10, **DOZEN[name]), torch.randn(2, 3, 64, 64))
    gated, arch, images = GatedModel(net.double(), net.axes).eval(), net.random(0.5), net.images.double()
    small = derive(gated.backbone, net.axes, arch)
    with torch.no_grad(), gated.fixed(arch):
        error = apart(gated(images), small(images))
    assert error <= allowed(net.double(), images, error) <= 1e-6
    macs = Macs(net.axes)
    assert float(macs(arch.sizes(net.axes))) <= REACH * float(macs({}))
    assert round(float(macs(arch.sizes(net.axes)))) == count(small, images).macs


@pytest.mark.zoo
def test_a_model_that_lists_its_stages_lists_the_new_widths() -> None:
    model = timm.create_model("efficientvim_m1", embed_dim=(32, 48, 64), state_dim=(9, 9, 9), depths=(1, 1, 1)).eval()
    net = traced_model(model, torch.randn(2, 3, 64, 64))
    small = derive(model, net.axes, net.random(0.5))
    assert list(small.embed_dim) == [info["num_chs"] for info in small.feature_info] == [16, 24, 32]
    small.reset_classifier(7)
    assert small(net.images).shape == (2, 7)


def test_a_row_says_what_holds_and_what_does_not() -> None:
    row = examine(Case("resnet", "test_resnet", (3, 32, 32)))
    assert row["problems"] == {}
    assert (row["free"], row["frozen"], row["reasons"]) == (12, 1, {"model output": 1})
    assert max(row["graph_error"], row["eager_error"]) <= 1e-9 < row["control_error"]
    broken = {**row, "module": "other", "macs": 0.7, "problems": {"eager": "RuntimeError: shapes"}}
    assert "eager timm models: 1" in summary([row, broken])
    text = page([row, broken])
    assert "| resnet | test_resnet | 32 | 12 | 1 |" in text
    assert "* other, eager: RuntimeError: shapes" in text
    assert "* other, MACs: 0.70x, as so much is frozen: model output (1)" in text


def test_every_module_of_timm_has_a_case() -> None:
    modules = {timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1] for name in timm.list_models()}
    assert modules - {"timm_build", "timm_entry", "cells_entry"} == set(cases())


@pytest.mark.slow
@pytest.mark.parametrize("module", cases())
def test_all_of_timm(module: str) -> None:
    row = examine(cases()[module])
    assert row["problems"] == {}
    assert row["macs"] <= REACH or module in BEYOND


def test_a_name_is_examined_without_numbers_and_a_row_is_not_repeated(tmp_path, monkeypatch) -> None:
    found = examine_name("test_vit")
    images = torch.randn(1, *found["size"])
    assert (found.get("problem"), found["macs"]) == (None, count(timm.create_model("test_vit"), images).macs)
    assert (found["module"], found["size"]) == ("vision_transformer", [3, 160, 160])
    out = tmp_path / "names.md"
    append_line(out.with_suffix(".jsonl"), {**found, "seconds": 77.0})
    broken = {"model": "test_resnet", "module": "resnet", "size": [3, 9, 9], "seconds": 1.0, "problem": "too small"}
    monkeypatch.setattr(coverage_names, "_examined", lambda names, _: [broken] * names.count("test_resnet"))
    assert coverage_names.examine_names(["test_vit", "test_resnet"], out, jobs=1).startswith("names: 2\ntraced: 1\n")
    assert "| 77.0 |" in out.read_text()
    assert "* test_resnet: too small" in out.read_text()


@pytest.mark.zoo
@pytest.mark.parametrize("words", [["coverage", "--only", "resnet", "--only", "vgg"], ["coverage-names", "resnet*"]])
def test_a_table_that_is_stopped_ends_with_all_that_it_has_started(words: list[str], tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "nas_prune", *words, "--jobs", "1", "--out", str(tmp_path / "table.md")]
    table = subprocess.Popen(asked, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(group(table.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(group(table.pid)) > 1
    table.terminate()
    assert table.wait(30) != 0
    deadline = time.monotonic() + 10
    while group(table.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group(table.pid) == []


def group(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found += [int(path.parent.name)] if int(path.read_text().rpartition(")")[2].split()[3]) == leader else []
    return found
