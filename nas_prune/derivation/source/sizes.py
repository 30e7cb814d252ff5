"""What the source of a module says about the sizes that it asks for.

The record of a trace says which line made a node; the syntax tree of that line says what stands where a size is given:
a number, an attribute of the module, or something computed.
"""

import ast
import inspect
import textwrap
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from types import FunctionType
from typing import Any, cast

from torch import nn
from torch.fx import Node

from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Fix, Prod, Term, free, resolve
from nas_prune.tracing.walk import Tie, operator

RESHAPES, SPLITS = ("reshape", "view"), ("split", "split_with_sizes")
NAMES = ("split_size_or_sections", "split_size", "split_sizes", "size", "shape")  # where sizes are given by name
MADE_BY = {**dict.fromkeys(("view", "_unsafe_view", "reshape"), RESHAPES), **dict.fromkeys(SPLITS, SPLITS)}


@dataclass(frozen=True)
class Asked:
    """A call in a method of a class, and the sizes that it is given. ``index``: which of the sizing calls there."""

    method: str
    index: int
    function: str
    sizes: list[ast.expr]


@dataclass(frozen=True)
class Named:
    """An attribute that stands where a node is given its size ``index``: that is ``attribute * times // over``."""

    node: Node
    index: int
    module: str
    attribute: str
    times: int
    over: int
    term: Term


def named_sizes(model: nn.Module, axes: Axes) -> list[Named]:
    """Every attribute of a module of a traced model that is a size of one of its views or splits."""
    found = []
    for node, literals in axes.walk.literals.items():
        path = axes.walk.captured.owner(node)
        module = model.get_submodule(path)
        matching = list(calls_of(type(module), node))
        pairs = zip(matching[0].sizes, literals[0].sizes, strict=True) if len(matching) == 1 else ()
        for index, (size, term) in enumerate(pairs):
            name, times, over = _attribute(_without_images(size, term))
            value = getattr(module, name, None)
            if type(value) is int and value * times // over == term.size:
                found.append(Named(node, index, path, name, times, over, term))
    return found


def named_sequences(model: nn.Module, axes: Axes) -> Iterator[tuple[Node, str, str, tuple[Term, ...]]]:
    """Every attribute of a module that stands for all sizes of a split: the node, module, attribute and its terms."""
    for node, literals in axes.walk.literals.items():
        path, terms, frame = axes.walk.captured.owner(node), literals[0].terms, frame_of(node)
        module, kind = model.get_submodule(path), cast(Hashable, type(model.get_submodule(path)))
        splits = isinstance(terms, tuple) and MADE_BY.get(operator(node).split(".")[0]) == SPLITS
        for _, tree in methods_on(kind, frame) if splits and frame is not None else ():
            for call in sizing_calls(tree):
                sizes = sizes_of(call) if isinstance(call, ast.Call) and _function(call) in SPLITS else []
                name = _attribute(sizes[0])[0] if len(sizes) == 1 and frame and is_near(tree, call, frame[1]) else ""
                value = getattr(module, name, None)
                if isinstance(value, list | tuple) and list(value) == [term.size for term in literals[0].sizes]:
                    yield node, path, name, literals[0].sizes


def calls_of(kind: type, node: Node) -> Iterator[Asked]:
    """The calls that may have made a node: on its line, or in the methods of the same module that this line calls."""
    functions, given = MADE_BY.get(operator(node).split(".")[0], ()), node.args[1] if len(node.args) > 1 else None
    frame = frame_of(node)
    for name, tree in methods_on(kind, frame) if frame is not None else ():
        for index, call in enumerate(sizing_calls(tree)):
            if isinstance(call, ast.Call) and frame is not None:
                asked = Asked(name, index, _function(call), sizes_of(call))
                if is_near(tree, call, frame[1]) and asked.function in functions and _matches(asked.sizes, given):
                    yield asked


@lru_cache(4096)
def methods_on(kind: Any, frame: tuple[str, int]) -> list[tuple[str, ast.FunctionDef]]:
    """The method that a line is in, and those of the same module that this line calls, by name."""
    methods, found = dict(methods_of(kind)), list[tuple[str, ast.FunctionDef]]()
    for name, method in methods.items():
        if method.__code__.co_filename == frame[0] and _covers(method, frame[1]):
            tree = parsed(method)
            called = (name, *sorted(_own_calls(tree, frame[1]) & methods.keys()))
            found += [(each, parsed(methods[each])) for each in called]
    return found


def is_near(tree: ast.FunctionDef, call: ast.expr, line: int) -> bool:
    """Whether a call is on a line, or anywhere in a method that this line calls."""
    inside = tree.lineno <= line <= (tree.end_lineno or tree.lineno)
    return not inside or _on_line(call, line)


def computed_sizes(model: nn.Module, axes: Axes, nodes: Iterable[Node]) -> set[Tie]:
    """A tie for each local name of a module's code that gives one of these nodes the size of an axis."""
    found = set[Tie]()
    for node in nodes:
        path, literals = axes.walk.captured.owner(node), axes.walk.literals.get(node, [])
        module = model.get_submodule(path)
        for literal in literals[:1]:
            for asked in calls_of(type(module), node):
                pairs = zip(asked.sizes, literal.sizes, strict=True)
                known = [(size, term) for size, term in pairs if free(term) and is_computed(size)]
                found |= {(path, _local(size, term, module), False) for size, term in known}
    return found


def _local(size: ast.expr, term: Term, module: nn.Module) -> int:
    """The value of the local name in a size: of C, where the size is C or ``C // self.heads``."""
    if isinstance(size, ast.BinOp) and isinstance(size.op, ast.FloorDiv):
        value = getattr(module, _attribute(size.right)[0], 1)
        return term.size * (value if isinstance(value, int) else 1)
    return term.size


def is_computed(size: ast.expr) -> bool:
    """Whether a size is computed from local names, not only from attributes of the module, which are repaired."""
    return any(isinstance(part, ast.Name) and part.id != "self" for part in ast.walk(size))


@cache
def names_used(kind: Hashable) -> frozenset[str]:
    """Names of attributes that the methods of a class read, its constructor left out."""
    methods = [inspect.getattr_static(kind, name) for name in dir(kind) if name != "__init__"]
    codes = [inspect.unwrap(method).__code__ for method in methods if isinstance(method, FunctionType)]
    own = [code for code in codes if "torch/nn/modules/module" not in code.co_filename]
    return frozenset(name for code in own for name in code.co_names)


def forward_names(kind: type[nn.Module]) -> frozenset[str]:
    """Names of attributes that the forward method of a class reads itself."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return frozenset(() if code is None else code.co_names)


def methods_of(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """The methods of a class that can be copied: plain functions of known source that need nothing of where they stand.

    Those that it inherits are among them, but for those of torch.
    """
    own = [base for base in kind.__mro__ if not base.__module__.startswith("torch.nn.modules.module")]
    for name in dict.fromkeys(("forward", *(name for base in own for name in vars(base)))):
        method = inspect.getattr_static(kind, name, None)
        plain = isinstance(method, FunctionType) and method.__closure__ is None and not hasattr(method, "__wrapped__")
        if isinstance(method, FunctionType) and plain and _readable(method):
            yield name, method


@cache
def _readable(method: FunctionType) -> bool:
    """Whether the source of a method is a definition in a file: code of ``exec`` has none, a lambda is none."""
    try:
        lines = inspect.getsourcelines(method)[0]
        return isinstance(ast.parse(textwrap.dedent("".join(lines))).body[0], ast.FunctionDef)
    except (OSError, SyntaxError, IndexError):
        return False


@cache
def parsed(method: FunctionType) -> ast.FunctionDef:
    """The syntax tree of a method, with the line numbers of its file."""
    lines, first = inspect.getsourcelines(method)
    tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    own = tree.args.args[0].arg if tree.args.args else "self"
    for part in ast.walk(tree) if own != "self" else ():  # whatever the module is called there
        if isinstance(part, ast.Name) and part.id == own:
            part.id = "self"
        elif isinstance(part, ast.arg) and part.arg == own:
            part.arg = "self"
    return ast.increment_lineno(tree, first - 1)


@cache
def sizing_calls(tree: ast.FunctionDef) -> list[ast.Call | ast.Subscript]:
    """The calls in a method that are given sizes, and then the slices there."""
    parts = list(ast.walk(tree))
    calls = [part for part in parts if isinstance(part, ast.Call) and _function(part) in RESHAPES + SPLITS]
    return [*calls, *(part for part in parts if isinstance(part, ast.Subscript) and sizes_of(part))]


def sizes_of(call: ast.Call | ast.Subscript) -> list[ast.expr]:
    """The sizes that a call is given, separately or as one sequence; the bounds that slices are given."""
    if isinstance(call, ast.Subscript):
        inside = call.slice.elts if isinstance(call.slice, ast.Tuple) else [call.slice]
        bounds = [bound for each in inside if isinstance(each, ast.Slice) for bound in (each.lower, each.upper)]
        return [bound for bound in bounds if bound is not None]
    args = call.args[1:] if _is_torchs(call) else call.args
    args = args or [keyword.value for keyword in call.keywords if keyword.arg in NAMES]
    if _function(call) in SPLITS:
        args = args[:1]
    only = args[0] if len(args) == 1 else None
    return only.elts if isinstance(only, ast.Tuple | ast.List) else args


def frame_of(node: Node) -> tuple[str, int] | None:
    """File and line of the innermost forward method that made a node."""
    lines = [line for line in str(node.meta.get("stack_trace") or "").splitlines() if line.lstrip().startswith("File ")]
    if not lines:
        return None
    path, line = lines[-1].split('"')[1], lines[-1].split(", line ")[1].split(",")[0]
    return path, int(line)


def _function(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _is_torchs(call: ast.Call) -> bool:
    """Whether it is torch.split(x, ...), not x.split(...)."""
    return (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "torch"
    )


def _matches(sizes: list[ast.expr], given: object) -> bool:
    """Whether a call could be the one of the graph: as many sizes, and the same where they are plain numbers."""
    listed = given if isinstance(given, list | tuple) else (given,)
    if len(sizes) != len(listed) or any(isinstance(size, ast.Starred) for size in sizes):
        return False
    return all(not isinstance(s, ast.Constant) or s.value == g for s, g in zip(sizes, listed, strict=True))


def _without_images(size: ast.expr, term: Term) -> ast.expr:
    """``2 * self.heads`` for ``B * self.heads``, where the size is so many times an axis."""
    term = resolve(term)
    fixed = term.parts[0] if isinstance(term, Prod) else None
    local = isinstance(size, ast.BinOp) and isinstance(size.op, ast.Mult) and isinstance(size.left, ast.Name)
    if local and isinstance(size, ast.BinOp) and isinstance(fixed, Fix):
        return ast.BinOp(ast.Constant(fixed.size), size.op, size.right)
    return size


def _attribute(size: ast.expr) -> tuple[str, int, int]:
    """(attribute, times, over) of ``self.a``, ``self.a * 2``, ``2 * self.a`` or ``self.a // 2``; no name otherwise."""
    if isinstance(size, ast.Attribute) and isinstance(size.value, ast.Name) and size.value.id == "self":
        return size.attr, 1, 1
    if isinstance(size, ast.BinOp) and isinstance(size.op, ast.Mult | ast.FloorDiv):
        one, other = size.left, size.right
        if isinstance(one, ast.Constant) and isinstance(size.op, ast.Mult):
            one, other = other, one
        if isinstance(other, ast.Constant) and type(other.value) is int and other.value > 0:
            name, times, over = _attribute(one)
            return (
                (name, times * other.value, over)
                if isinstance(size.op, ast.Mult)
                else (name, times, over * other.value)
            )
    return "", 1, 1


def _covers(method: FunctionType, line: int) -> bool:
    first = method.__code__.co_firstlineno
    return first <= line <= max((at for _, _, at in method.__code__.co_lines() if at is not None), default=first)


def _on_line(call: ast.expr, line: int) -> bool:
    return call.lineno <= line <= (call.end_lineno or call.lineno)


def _own_calls(tree: ast.FunctionDef, line: int) -> set[str]:
    """Names of the methods of ``self`` that a line calls."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and _on_line(node, line)]
    owned = [func for func in calls if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name)]
    return {func.attr for func in owned if isinstance(func.value, ast.Name) and func.value.id == "self"}
