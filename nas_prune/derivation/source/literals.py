"""Widths that stand as numbers in the code of a module: ``x.view(b, 64, 8)``, ``x.split([16, 48], 1)``, ``x[:, :16]``.

Each becomes an attribute of the module, with that number in the dense model: what holds a width is repaired like any
other attribute. Ours.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from nas_prune.derivation.source.sizes import calls_of, frame_of, is_near, methods_on, sizes_of, sizing_calls
from nas_prune.tracing.terms import Term, free
from nas_prune.tracing.walk import Literal, operator


@dataclass(frozen=True)
class Numeral:
    """A number in a method that is a size of a node: which of the sizing calls there, which of its sizes.

    ``argument``: which of the sizes that the record has of the node.
    """

    method: str
    call: int
    size: int
    argument: int
    value: int
    term: Term

    @property
    def attribute(self) -> str:
        """The attribute that takes its place."""
        return attribute_of(self.method, self.call, self.size)


def attribute_of(method: str, call: int, size: int) -> str:
    """The attribute that takes the place of a number in a method."""
    return f"{method}_size_{call}_{size}"


def numerals(kind: type, node: Node, literals: list[Literal]) -> list[Numeral]:
    """The numbers in the code of a class that are sizes of a node, where it is clear which call made the node."""
    if operator(node) == "slice.Tensor":
        return list(_bounds(kind, node, literals))
    matching = list(calls_of(kind, node))
    found = []
    for index, size in enumerate(matching[0].sizes if len(matching) == 1 else ()):
        term = literals[0].sizes[index]
        if free(term) and number(size) == term.size:
            found.append(Numeral(matching[0].method, matching[0].index, index, index, term.size, term))
    return found


def number(size: ast.expr) -> int | None:
    """The value of a size that is a number, or numbers multiplied; None for anything else."""
    if isinstance(size, ast.Constant):
        return size.value if type(size.value) is int and size.value > 0 else None
    if isinstance(size, ast.BinOp) and isinstance(size.op, ast.Mult):
        one, other = number(size.left), number(size.right)
        return None if one is None or other is None else one * other
    return None


def _bounds(kind: type, node: Node, literals: list[Literal]) -> Iterator[Numeral]:
    """The bounds of the one slice on the line of a node that has this beginning and this end."""
    terms = [literal.sizes[0] for literal in literals]
    whole, frame = node.all_input_nodes[0].meta["val"].shape[node.args[1]], frame_of(node)
    found: list[list[Numeral]] = []
    for name, tree in methods_on(kind, frame) if frame is not None else ():
        for index, call in enumerate(sizing_calls(tree)):
            near = frame is not None and is_near(tree, call, frame[1])
            for each in _slices(call) if near and isinstance(call, ast.Subscript) else ():
                bounds = [None if bound is None else number(bound) for bound in (each.lower, each.upper)]
                if [bounds[0] or 0, bounds[1] or whole] == [term.size for term in terms] and each.step is None:
                    own = zip((each.lower, each.upper), bounds, terms, strict=True)
                    sizes = [(sizes_of(call).index(b), n, t) for b, n, t in own if b is not None and n and free(t)]
                    found.append([Numeral(name, index, size, 0, n, t) for size, n, t in sizes])
    yield from found[0] if len(found) == 1 else ()


def _slices(call: ast.Subscript) -> list[ast.Slice]:
    parts = call.slice.elts if isinstance(call.slice, ast.Tuple) else [call.slice]
    return [part for part in parts if isinstance(part, ast.Slice)]
