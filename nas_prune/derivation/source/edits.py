"""Classes that ask for -1 where they would compute a width from the shape of their input (ours).

Some modules write ``x.reshape(B, N, C)`` with C read off their input, although what they reshape is the inside of an
attention: true of the dense model only. With -1 in place of C the same line serves every width, and still the dense
one. The record of the trace says which lines those are; a subclass gets a copy of the method with just these sizes
replaced, and keeps its name. A width that stands there as a number becomes an attribute in the same way.
"""

import ast
import copy
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn
from torch.fx import Node

from nas_prune.base.errors import ArtifactError
from nas_prune.base.parts import OUTSIDE
from nas_prune.derivation.source.literals import attribute_of, number, numerals
from nas_prune.derivation.source.sizes import (
    RESHAPES,
    calls_of,
    is_computed,
    methods_of,
    parsed,
    sizes_of,
    sizing_calls,
)
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Term, free

Place = tuple[int, int, bool]  # which sizing call of a method, which of its sizes, whether an attribute (or -1)
Edits = Mapping[str, frozenset[Place]]  # by method
# class -> method -> {"source": digest, "places": [[call, size]] of which are -1, "attributes": [[call, size]]}
Record = dict[str, dict[str, dict[str, Any]]]


def edits_of(model: nn.Module, axes: Axes) -> dict[type, Edits]:
    """What to replace in which class of a traced model, so that its code serves every width of the free axes."""
    found: dict[type, dict[str, frozenset[Place]]] = {}
    for node, literals in axes.walk.literals.items():
        kind, terms = type(model.get_submodule(axes.walk.captured.owner(node))), literals[0].terms
        reshapes = isinstance(terms, tuple) and len(node.args) > 1 and isinstance(node.args[1], list | tuple)
        places = list(_places(kind, node, terms)) if reshapes and isinstance(terms, tuple) else []
        places += [(each.method, (each.call, each.size, True)) for each in numerals(kind, node, literals)]
        for method, place in places:
            edits = found.setdefault(kind, {})
            edits[method] = edits.get(method, frozenset()) | {place}
    return dict(found)


def rewrite(model: nn.Module, edits: Mapping[type, Edits]) -> None:
    """Let the modules of these classes use the edited methods."""
    made = {kind: rewritten(kind, edits[kind]) for kind in edits}
    for module in model.modules():
        module.__class__ = made.get(type(module), type(module))
        for name, value in vars(type(module)).get("__numbers__", {}).items():
            vars(module).setdefault(name, value)


def rewritten(kind: type, edits: Edits) -> type:
    """The subclass of ``kind`` with these edits; the same one for the same edits."""
    kind, before = vars(kind).get("__rewritten__", (kind, ()))
    merged = {name: places | dict(before).get(name, frozenset()) for name, places in {**dict(before), **edits}.items()}
    return _subclass(kind, tuple(sorted(merged.items())))


def recorded(model: nn.Module) -> Record:
    """What was replaced in the classes of a model, as plain data: class -> method -> digest of its source, places."""
    found: Record = {}
    for kind in {type(module) for module in model.modules()}:
        base, edits = vars(kind).get("__rewritten__", (kind, ()))
        for name, places in edits:
            method = inspect.getattr_static(base, name)
            kinds = [sorted([call, size] for call, size, named in places if named is kind) for kind in (False, True)]
            facts = {"source": _digest(method), "places": kinds[0], "attributes": kinds[1]}
            found.setdefault(_title(base), {})[name] = facts
    return found


def repeat(model: nn.Module, record: Record) -> None:
    """Do again what was recorded, on a fresh model. Raises ArtifactError where the sources are not those of then."""
    kinds = titles(model)
    record = {_without_path(title): methods for title, methods in record.items()}
    if record.keys() - kinds.keys():
        raise ArtifactError(f"the origin has no module of class {min(record.keys() - kinds.keys())}")
    edits: dict[type, Edits] = {}
    for title, methods in record.items():
        known = dict(methods_of(kinds[title]))
        for name, facts in methods.items():
            if name not in known or _digest(known[name]) != facts["source"]:
                raise ArtifactError(
                    f"{title}.{name} is not the code that the artefact was made with; install the versions it lists"
                )
            calls = sizing_calls(parsed(known[name]))
            for call, size, named in _recorded(facts):
                sizes = sizes_of(calls[call]) if 0 <= call < len(calls) else []
                if not 0 <= size < len(sizes) or (named and number(sizes[size]) is None):
                    raise ArtifactError(
                        f"{title}.{name} has no {'number' if named else 'size'} {size} in a call {call}"
                    )
        edits[kinds[title]] = {name: frozenset(_recorded(facts)) for name, facts in methods.items()}
    rewrite(model, edits)


def _recorded(facts: Mapping[str, Any]) -> list[Place]:
    """The places of a method in a record; older artefacts know no attributes."""
    named = [(call, size, True) for call, size in facts.get("attributes", ())]
    return [*((call, size, False) for call, size in facts["places"]), *named]


def titles(model: nn.Module) -> dict[str, type]:
    """The classes of a model, by the names under which ``recorded`` knows them."""
    return {_title(type(module)): type(module) for module in model.modules()}


def part_of(record: Record, model: nn.Module) -> Record:
    """What of a record is about classes that the model has."""
    return {title: methods for title, methods in record.items() if _without_path(title) in titles(model)}


def _title(kind: type) -> str:
    return _without_path(f"{kind.__module__}.{kind.__qualname__}")


def _without_path(title: str) -> str:
    """The name of a class without its file, where it is of ours or of the ``parts:`` of a recipe.

    Files move, and what was made before must load.
    """
    ours = title.startswith(("nas_prune.", OUTSIDE))
    return f"nas_prune.{title.rpartition('.')[2]}" if ours else title


def _digest(method: FunctionType) -> str:
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()


def original(kind: type) -> type:
    """The class that a rewritten one was made from; any other class itself."""
    return vars(kind).get("__rewritten__", (kind, ()))[0]  # type: ignore[no-any-return]


@cache
def _subclass(kind: Any, edits: tuple[tuple[str, frozenset[Place]], ...]) -> type:
    members: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"__rewritten__": (kind, edits), "__reduce_ex__": _reduced, "__numbers__": {}}
    for name, places in edits:
        members[name], numbers = _edited(inspect.getattr_static(kind, name), places)
        members["__numbers__"] |= numbers
    return type(kind.__name__, (kind,), members)


def _reduced(module: nn.Module, protocol: int) -> tuple[Any, ...]:  # noqa: ARG001
    """How a module of a rewritten class is pickled: its class cannot be found by its name."""
    kind, edits = vars(type(module))["__rewritten__"]
    return _fresh, (kind, edits), module.__getstate__()  # type: ignore[no-untyped-call]


def _fresh(kind: type, edits: tuple[tuple[str, frozenset[Place]], ...]) -> nn.Module:
    """An empty module of a rewritten class, for pickle to fill."""
    made: Any = _subclass(kind, edits)
    module: nn.Module = made.__new__(made)
    return module


def _edited(method: FunctionType, places: frozenset[Place]) -> tuple[FunctionType, dict[str, int]]:
    """A copy of a method with -1 or attributes at these places, and the numbers that the attributes stand for.

    Line numbers stay, so that tracebacks show the source.
    """
    tree = copy.deepcopy(parsed(method))
    calls, taken, numbers = sizing_calls(tree), dict[ast.expr, ast.expr](), dict[str, int]()
    for call, size, named in places:
        old, name = sizes_of(calls[call])[size], attribute_of(method.__name__, call, size)
        new: ast.expr = ast.UnaryOp(ast.USub(), ast.Constant(1))
        if named:
            new, numbers[name] = ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load()), number(old) or 0
        taken[old] = ast.copy_location(new, old)
    module = ast.fix_missing_locations(ast.Module([_Exchange(taken).visit(tree)], []))
    made: dict[str, Any] = {}
    exec(compile(module, method.__code__.co_filename, "exec"), method.__globals__, made)
    function = made[method.__name__]
    function.__qualname__ = method.__qualname__
    assert isinstance(function, FunctionType)
    return function, numbers


class _Exchange(ast.NodeTransformer):
    """Puts other expressions in the place of some."""

    def __init__(self, taken: Mapping[ast.expr, ast.expr]) -> None:
        self.taken = taken

    def visit(self, node: ast.AST) -> Any:
        return self.taken[node] if isinstance(node, ast.expr) and node in self.taken else self.generic_visit(node)


def _places(kind: type, node: Node, terms: tuple[Term, ...]) -> Iterator[tuple[str, Place]]:
    """Where the source of one view computes the size of an axis from the shape of something."""
    for asked in calls_of(kind, node):
        computed = [i for i, size in enumerate(asked.sizes) if free(terms[i]) and is_computed(size)]
        if asked.function in RESHAPES and len(computed) == 1 and not any(map(_minus_one, asked.sizes)):
            yield asked.method, (asked.index, computed[0], False)


def _minus_one(size: ast.expr) -> bool:
    return ast.unparse(size) == "-1"
