"""Imports point down: a file imports from its own layer or a lower one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nas_prune"
LAYERS = (
    "errors registry axes arch files json_text documents tensor_file run_files result_files folding folders lock "
    "shipped signals yaml_text bounds origin device",
    "settings tracing space gates costs ops cells",
    "calls intercept gateable scales training_only gated derivation removal swaps attention_scale "
    "sources repair rewrite citizen expressible rebuild adapt "
    "verification substitute",
    "criteria shapley selectors schedules penalties",
    "ascent joint finetune evaluate data augment idx memory_images file_images image_files order preprocessing "
    "given_weights room checkpoint stage_file artifact artifact_config artifact_tensors timm_entry timm_build "
    "calibration_facts calibration_file calibration_check "
    "bench sampling calibrate meet reform coverage coverage_names exporting export_forms "
    "scores report summary figures pareto stages track progress train descent budget",
    "recipe recipe_keys promise overrides checks build job calibrated scoring steps results targets pipeline subject "
    "doctor cli cli_coverage cli_doctor cli_export cli_timm timm_recipe timm_scripts cli_help cli_list cli_show "
    "__main__",
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts.split()}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The name in ``LAYERS`` that a file belongs to: its folder, or itself."""
    return file.parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, part of nas_prune) of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "nas_prune" else [base]
        for name in names:
            if name.split(".")[0] == "nas_prune":
                yield node.lineno, name.partition(".")[2].partition(".")[0]


def upward(file: Path, source: str) -> list[str]:
    """Imports of a file that point up, as file, line and what it imports."""
    own = LAYER[part_of(file)]
    package = ("nas_prune", *file.parts[:-1])
    return [
        f"nas_prune/{file}:{line} (layer {own}) imports {part or 'the whole package'} (layer {LAYER.get(part, '-')})"
        for line, part in imported(ast.parse(source), package)
        if LAYER.get(part, len(LAYERS)) > own
    ]


def test_every_file_is_in_a_layer() -> None:
    known = {*LAYER, "__init__"}
    lost = sorted(
        {
            f"nas_prune/{file} is in no layer; enter it in LAYERS of this test"
            for file in FILES
            if part_of(file) not in known
        }
    )
    assert lost == []


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) in LAYER], ids=str)
def test_imports_point_down(file: Path) -> None:
    assert upward(file, (PACKAGE / file).read_text()) == []


def test_an_import_that_points_up_is_found_wherever_it_hides() -> None:
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nas_prune.joint import search\n"
    late = "def f():\n    import nas_prune.cli\n"
    relative = "from ..gated import GatedModel\nfrom . import weight\nfrom .. import cli\n"
    assert upward(Path("gates/new.py"), hidden) == ["nas_prune/gates/new.py:3 (layer 1) imports joint (layer 4)"]
    assert upward(Path("arch.py"), late) == ["nas_prune/arch.py:2 (layer 0) imports cli (layer 5)"]
    assert [text.split(" ")[-3] for text in upward(Path("gates/new.py"), relative)] == ["gated", "cli"]
    assert (
        upward(Path("gated.py"), "from nas_prune import tracing\nfrom nas_prune.gates.gate import Gate\nimport torch\n")
        == []
    )
