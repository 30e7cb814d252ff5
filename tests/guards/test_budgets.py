"""Budgets of the house: short files, short functions, all typed, and nothing hidden."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "nas_prune").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LOOPS = (
    "search",
    "learn",
    "settle",
    "finetune",
    "fit",
    "meet",
    "calibrate",
)  # may take eight parameters, as constructors may

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed once, and only where these tests run."""
    return ast.parse(path.read_text())


def functions(path: Path) -> list[Function]:
    """All functions of a file, methods and inner ones included."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def lines(function: Function) -> int:
    """Length from ``def`` to the last line, docstring included, decorators not."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> list[ast.arg]:
    """All parameters but ``self`` and ``cls``."""
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [arg for arg in given if arg.arg not in ("self", "cls")]


def at(path: Path, node: ast.AST | int, what: str) -> str:
    """A finding as file, line and what."""
    return f"{path.relative_to(ROOT)}:{node if isinstance(node, int) else node.lineno} {what}"


def found(paths: list[Path], look: Callable[[ast.AST], str | None]) -> list[str]:
    """Findings of a look at every node."""
    return [at(path, node, what) for path in paths for node in ast.walk(tree(path)) if (what := look(node))]


def test_files_are_short() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in FILES}
    assert [at(path, size, "lines, at most 300") for path, size in sizes.items() if size > 300] == []
    assert median(size for size in sizes.values() if size) <= 120


def test_functions_are_short() -> None:
    sizes = [(lines(function), path, function) for path in FILES for function in functions(path)]
    assert [at(path, f, f"{f.name} has {size} lines, at most 40") for size, path, f in sizes if size > 40] == []
    lengths = [size for size, _, _ in sizes]
    assert median(lengths) <= 10
    assert quantiles(lengths, n=10)[-1] <= 25


def test_everything_is_typed() -> None:
    bare = []
    for path in FILES:
        for function in functions(path):
            bare += [
                at(path, arg, f"{function.name}({arg.arg})") for arg in parameters(function) if arg.annotation is None
            ]
            bare += [at(path, function, f"{function.name} -> ?")] if function.returns is None else []
    assert bare == []


def test_few_parameters() -> None:
    many = []
    for path in FILES:
        for function in functions(path):
            limit = 8 if function.name == "__init__" or function.name in LOOPS else 5
            if len(parameters(function)) > limit:
                many.append(at(path, function, f"{function.name} takes {len(parameters(function))}, at most {limit}"))
    assert many == []


def _packed(node: ast.AST) -> str | None:
    """A parameter of several types in a tuple that is unpacked first of all: an object is missing."""
    if not isinstance(node, Function):
        return None
    statements = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not statements or not isinstance(statements[0], ast.Assign):
        return None
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for target in statements[0].targets:
        side_by_side = isinstance(target, ast.Tuple) and isinstance(statements[0].value, ast.Tuple)
        here, there = (each.elts if side_by_side else [each] for each in (target, statements[0].value))
        pairs += zip(here, there, strict=False)
    unpacked = {ast.unparse(what) for into, what in pairs if isinstance(into, ast.Tuple)}
    packed = [arg.arg for arg in parameters(node) if arg.arg in unpacked and _mixed(arg.annotation)]
    return f"{node.name} unpacks {packed[0]}" if packed else None


def _mixed(annotation: ast.expr | None) -> bool:
    """Whether a type is a tuple of different things; coordinates and ranges are of one."""
    parts = getattr(getattr(annotation, "slice", None), "elts", [])
    return ast.unparse(annotation).startswith("tuple[") and len({ast.unparse(part) for part in parts}) > 1


def _spread(node: ast.AST) -> str | None:
    """``f(*(a, b), c=c)``, which is ``f(a, b, c=c)``; a list of constants may be laid out so."""
    if not isinstance(node, ast.Call):
        return None
    tuples = [arg.value for arg in node.args if isinstance(arg, ast.Starred) and isinstance(arg.value, ast.Tuple)]
    spread = [each for each in tuples if not all(isinstance(part, ast.Constant) for part in each.elts)]
    return f"spreads {ast.unparse(spread[0])}" if spread else None


OWNERS = {"self"} | {  # classes with a field called data: a Job, a Recipe
    node.name.lower()
    for path in FILES
    for node in ast.walk(tree(path))
    if isinstance(node, ast.ClassDef)
    and any(
        isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name) and f.target.id == "data" for f in node.body
    )
}


def _data(node: ast.AST) -> str | None:
    """``x.data``, where x is not known to have a field of that name."""
    if not (isinstance(node, ast.Attribute) and node.attr == "data"):
        return None
    owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
    return None if owner in OWNERS else "uses .data"


def _print(node: ast.AST) -> str | None:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    return "prints" if called else None


def _swallow(node: ast.AST) -> str | None:
    """A handler that does nothing, or that takes any error and neither raises nor looks at it."""
    if not isinstance(node, ast.ExceptHandler):
        return None
    idle = all(isinstance(s, ast.Pass | ast.Continue) for s in node.body)
    broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
    inside = [inner for statement in node.body for inner in ast.walk(statement)]
    used = any(isinstance(n, ast.Raise) or (isinstance(n, ast.Name) and n.id == node.name) for n in inside)
    return "swallows an error" if idle or node.type is None or (broad and not used) else None


def _suppress(node: ast.AST) -> str | None:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    name = (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) if called else ""
    return "suppresses an error" if name == "suppress" else None


@pytest.mark.parametrize("look", [_data, _print, _swallow, _suppress, _packed, _spread])
def test_nothing_is_hidden(look: Callable[[ast.AST], str | None]) -> None:
    assert found(FILES, look) == []


def test_no_notes_to_oneself() -> None:
    word = re.compile("TO" + "DO|FIX" + "ME|XX" + "X")
    notes = [
        at(path, number, text.strip())
        for path in [*FILES, *TESTS]
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if word.search(text)
    ]
    assert notes == []


def test_no_marks_of_a_merge_are_left() -> None:
    """Within a docstring, or a page, nothing else would find them."""
    mark = re.compile("^(" + "<" * 7 + "|" + ">" * 7 + ")", re.MULTILINE)
    pages = [path for end in ("*.md", "*.yaml") for path in ROOT.rglob(end) if ".git" not in path.parts]
    texts = [*FILES, *TESTS, *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/**/*.py"), *pages]
    assert [str(path.relative_to(ROOT)) for path in texts if mark.search(path.read_text())] == []


def asserts(function: Function) -> Iterator[ast.AST]:
    """Assert statements, calls of ``assert_close`` and its like, and blocks that expect an error or a warning."""
    for node in ast.walk(function):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.Assert) or name in ("raises", "warns") or name.startswith("assert_"):
            yield node


def test_every_test_asserts() -> None:
    tests = [(path, f) for path in TESTS for f in functions(path) if f.name.startswith("test_")]
    assert len(tests) > 50
    assert [at(path, f, f"{f.name} asserts nothing") for path, f in tests if next(asserts(f), None) is None] == []


@pytest.mark.parametrize(
    ("source", "look"),
    [
        ("weight.data.mul_(2)", _data),
        ("print(1)", _print),
        ("try:\n    f()\nexcept:\n    g()", _swallow),
        ("try:\n    f()\nexcept KeyError:\n    pass", _swallow),
        ("try:\n    f()\nexcept Exception:\n    g()", _swallow),
        ("with contextlib.suppress(KeyError):\n    f()", _suppress),
        ('def f(how: tuple[Space, Limits]) -> None:\n    """F."""\n    space, limits = how', _packed),
        ("def f(a: int, how: tuple[Space, Limits]) -> None:\n    b, (space, limits) = a, how", _packed),
        ("def f(how: tuple[Space, Limits]) -> None:\n    both = (space, limits) = how", _packed),
        ("f(*(a, b), c=c)", _spread),
    ],
)
def test_the_guards_are_not_blind(source: str, look: Callable[[ast.AST], str | None]) -> None:
    assert [what for node in ast.walk(ast.parse(source)) if (what := look(node))] != []
