"""What the time of a network is a sum of: measured operators, multiply-adds, memory traffic; functions of the sizes.

An operator is a column of measured milliseconds, if the table knows it; and its multiply-adds, the elements that it
reads and those that it writes. All other nodes (norms, activations, sums, pools) are one column per sort: the elements
they read and write. Views cost nothing. The weights are columns of their own: all of them, and what no cache holds.
That a kernel waits for arithmetic or for memory is the roofline (Williams et al., 2009); the sum of both is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod as product

import torch
from torch import Tensor, nn
from torch.fx import Node

from nas_prune.costs.operators.operator import Operator, operators
from nas_prune.costs.operators.table import MOST, OperatorTable, TimeGrid, interpolated, padded
from nas_prune.costs.operators.weight_memory import WeightMemory
from nas_prune.costs.operators.widths import Products
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Dims, Term, Var, leaves
from nas_prune.tracing.walk import operator

MEASURED = "measured operators"
MANY = 64  # operators: with more, the elements that they read and write are one column per sort, not per operator
SORTS = {  # a word in the operator's name; what has none is "other"
    "norm": ("norm",),
    "pool": ("pool", "mean", "amax"),
    "activation": ("relu", "elu", "silu", "hard", "sigmoid", "tanh", "mish"),
    "softmax": ("softmax",),
    "sum or product": ("add", "sub", "mul", "div"),
}
FREE = (  # how the names of operators begin that only look at a tensor in another way
    *("view", "getitem", "permute", "transpose", "t.", "expand", "slice", "unbind", "split", "chunk", "select"),
    *("squeeze", "unsqueeze", "dropout", "detach", "alias", "_assert", "flatten", "reshape", "narrow", "sym_size"),
)


@dataclass(frozen=True)
class Piece:
    """Work of a ``sort``: the product of the terms; ``node``: the operator that it would be timed with, if any."""

    sort: str
    node: str
    terms: tuple[Term, ...]

    @property
    def column(self) -> tuple[str, str]:
        """The column that it counts in."""
        return self.sort, self.node


class Features(nn.Module):
    """Shares of the axes (b n) -> columns (b f).

    ``groups``: the sort of each column; ``twice``: whether it counts the work of an operator that was measured as well.
    """

    amounts: Tensor
    dense: Tensor
    powers: Tensor
    first: Tensor
    second: Tensor
    ms: Tensor

    def __init__(self, axes: Axes, names: Sequence[str], table: OperatorTable | None = None) -> None:
        super().__init__()
        free = set(names)
        moving = {var for var, name in axes.variables.items() if name in free}
        known = [each for each in operators(axes) if _moves((*each.first, *each.second, *each.present), moving)]
        pieces = [piece for piece in _pieces(axes) if _moves(piece.terms, moving)]
        columns = {column: index for index, column in enumerate(dict.fromkeys(piece.column for piece in pieces))}
        self.memory = WeightMemory(axes, names, list(_weights(axes)))
        self.groups = [MEASURED] * len(known) + [sort for sort, _ in columns] + self.memory.groups
        self.pieces = Products(axes, names, [piece.terms for piece in pieces])
        self.sides = Products(axes, names, [side for each in known for side in (each.first, each.second)])
        self.present = Products(axes, names, [each.present for each in known])
        amounts = torch.zeros(len(pieces), len(columns))
        for row, piece in enumerate(pieces):
            amounts[row, columns[piece.column]] = product(term.size for term in piece.terms)
        self.register_buffer("amounts", amounts, persistent=False)
        widths = torch.tensor([each.shape.full for each in known]).float().reshape(-1, 2)
        powers = [(1 / len(each.first), 1 / len(each.second)) for each in known]
        self.register_buffer("dense", widths, persistent=False)
        self.register_buffer("powers", torch.tensor(powers).reshape(-1, 2), persistent=False)
        self._keep(known, [node for _, node in columns], table)

    def _keep(self, known: Sequence[Operator], nodes: Sequence[str], table: OperatorTable | None) -> None:
        """The table as part of the state: whoever loads the state needs no table."""
        grids = [None if table is None else table.grids.get(each.shape.key) for each in known]
        nothing = TimeGrid(torch.ones(1), torch.ones(1), torch.zeros(1, 1))
        filled = [grid or nothing for grid in grids]
        self.register_buffer("first", _rows([padded(grid.first, MOST) for grid in filled]))
        self.register_buffer("second", _rows([padded(grid.second, MOST) for grid in filled]))
        ms = torch.zeros(len(known), MOST, MOST)
        for row, grid in zip(ms, filled, strict=True):
            row[: len(grid.first), : len(grid.second)] = grid.ms
        self.register_buffer("ms", ms)
        measured = {each.node for each, grid in zip(known, grids, strict=True) if grid is not None}
        counted = [node in measured for node in nodes]
        self.twice = [False] * len(known) + counted + [False] * len(self.memory.groups)

    def forward(self, shares: Tensor) -> Tensor:
        """(b n) -> (b f): milliseconds of measured operators, amounts of everything else."""
        amounts = self.pieces(shares) @ self.amounts
        return torch.cat([self._measured(shares), amounts, self.memory(shares)], -1)

    def _measured(self, shares: Tensor) -> Tensor:
        """(b n) -> (b k): milliseconds of the operators in the table, 0 of the others."""
        if not bool(self.ms.any()):  # no table, as is usual; to look up nothing would take more than all the rest
            return shares.new_zeros(len(shares), len(self.ms))
        widths = self.sides(shares).reshape(len(shares), -1, 2) ** self.powers * self.dense
        present: Tensor = self.present(shares)
        return present * interpolated(self.ms, (self.first, self.second), (widths[..., 0], widths[..., 1]))


def _pieces(axes: Axes) -> Iterator[Piece]:
    """All work of a network, in the order of the graph."""
    walk = axes.walk
    for node in walk.captured.graph.nodes:
        if node.op != "call_function" or node not in walk.terms or operator(node).startswith(FREE):
            continue
        bits = tuple(walk.presence.get(node, ()))
        read = [(*_first(axes, given), *bits) for given in node.all_input_nodes if walk.tensor(given) is None]
        written = (*_first(axes, node), *bits)
        if node in walk.products:
            name, own = _family(axes, node), node.name if len(walk.products) <= MANY else ""
            yield from (Piece(f"{name} multiply-adds", node.name, terms) for terms in walk.products[node])
            yield from (Piece(f"{name} reads", own, dims) for dims in read)
            yield Piece(f"{name} writes", own, written)
        else:
            sort = next((sort for sort, words in SORTS.items() if any(w in operator(node) for w in words)), "other")
            yield from (Piece(sort, "", dims) for dims in (*read, written))


def _weights(axes: Axes) -> Iterator[tuple[Term, ...]]:
    """The terms of every tensor of weights that is multiplied with something, and whether its operator is there."""
    walk = axes.walk
    for node in walk.products:
        bits = tuple(walk.presence.get(node, ()))
        yield from ((*_first(axes, given), *bits) for given in node.all_input_nodes if walk.tensor(given) is not None)


def _family(axes: Axes, node: Node) -> str:
    """What has one rate: convolutions that are dense, of one pixel and grouped compute at different speeds."""
    name = operator(node).split(".")[0]
    if not name.startswith("conv"):
        return name
    x, weight = (axes.walk.of(value) for value in node.args[:2])
    pointwise = all(term.size == 1 for term in weight[2:])
    return f"{'grouped ' if x[1].size > weight[1].size else ''}{'pointwise ' if pointwise else ''}{name}"


def _first(axes: Axes, node: Node) -> Dims:
    """Terms of a node, of several outputs those of the first."""
    terms = axes.walk.terms.get(node, ())
    first: Dims = terms[0] if isinstance(terms, list) else terms
    return first


def _moves(terms: Sequence[Term], moving: set[Var]) -> bool:
    return any(var in moving for term in terms for var in leaves(term))


def _rows(grids: Sequence[Tensor]) -> Tensor:
    """Grids (k p), also where there is none."""
    return torch.stack(list(grids)) if grids else torch.zeros(0, MOST)
