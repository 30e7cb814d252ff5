"""Imports point down: a package imports from itself and from those before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nas_prune"
LAYERS = (
    "base",
    "ops",
    "tracing",
    "costs",
    "methods",
    "derivation",
    "train",
    "artifact",
    "run",
    "cli",
    "settings",
    "__main__",
)
LAYER = {package: number for number, package in enumerate(LAYERS)}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MOST = 16  # files in a folder


def package_of(file: Path) -> str:
    """The name in ``LAYERS`` that a file belongs to: its topmost folder, or itself."""
    return file.parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, package of nas_prune) of every import, also those inside functions and under TYPE_CHECKING."""
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
    own = LAYER[package_of(file)]
    return [
        f"nas_prune/{file}:{line} imports {package or 'the whole package'}"
        for line, package in imported(ast.parse(source), ("nas_prune", *file.parts[:-1]))
        if LAYER.get(package, len(LAYERS)) > own
    ]


def test_the_top_holds_packages_and_what_users_import() -> None:
    assert {package_of(file) for file in FILES} == {*LAYERS, "__init__"}
    assert [str(file) for file in FILES if len(file.parts) == 1] == ["__init__.py", "__main__.py", "settings.py"]


def test_a_folder_can_be_looked_over() -> None:
    folders = {file.parent for file in FILES}
    sizes = {str(folder): sum(file.parent == folder for file in FILES) for folder in folders}
    assert {folder: size for folder, size in sizes.items() if size > MOST} == {}


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    files = [file for file in FILES if package_of(file) == package]
    assert files
    assert [wrong for file in files for wrong in upward(file, (PACKAGE / file).read_text())] == []


def test_an_import_that_points_up_is_found_wherever_it_hides() -> None:
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nas_prune.train.search import search\n"
    late = "def f():\n    import nas_prune.cli.program\n"
    relative = "from ...methods.gated import GatedModel\nfrom . import weight\nfrom ... import cli\n"
    down = "from nas_prune import tracing\nfrom nas_prune.methods.gates.gate import Gate\nimport torch\n"
    assert upward(Path("methods/new.py"), hidden) == ["nas_prune/methods/new.py:3 imports train"]
    assert upward(Path("tracing/arch.py"), late) == ["nas_prune/tracing/arch.py:2 imports cli"]
    assert [text.split(" ")[-1] for text in upward(Path("tracing/rules/new.py"), relative)] == ["methods", "cli"]
    assert upward(Path("methods/gated.py"), down) == []
