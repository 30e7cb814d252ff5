"""A genotype: what a search of cells has found, as plain data (JSON).

    {"normal": {"2": {"0": "sep_conv_3x3", "1": "skip_connect"}, "3": ...}, "reduction": ...}

kind of cell -> node -> state that it reads -> operation. In an architecture it is one axis per kind, edge and
operation, ``normal.0_to_2.sep_conv_3x3``, which all cells of the kind share.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nas_prune.base.errors import ArchError, shown
from nas_prune.base.files.whole import read_json
from nas_prune.base.registry import hint
from nas_prune.ops.cells.cell_space import CellSpace, Edge, decision

Genotype = Mapping[str, Mapping[str, Mapping[str, str]]]
ChosenOperations = dict[Edge, str]  # operation per kept edge


def genotype_of(scores: Mapping[str, Tensor], space: CellSpace) -> Genotype:
    """The genotype by the rule of DARTS, from scores (1) per operation axis.

    On each edge stays the strongest operation by softmax, and at each node the ``edges_per_node`` strongest edges.
    Raises ArchError where an operation has no score.
    """
    genotype: dict[str, dict[str, dict[str, str]]] = {}
    for kind in space.searched:
        genotype[kind] = {}
        for node, states in space.edges.items():
            shares = {state: _shares(scores, decision(kind, (state, node)), space) for state in states}
            strongest = sorted(states, key=lambda state: -float(shares[state].max()))[: space.kept(node)]
            names = {state: list(space.operations)[int(shares[state].argmax())] for state in sorted(strongest)}
            genotype[kind][str(node)] = {str(state): name for state, name in names.items()}
    return genotype


def genotype_from(kept: Mapping[str, Sequence[int]], space: CellSpace) -> Genotype:
    """The genotype of an architecture, ``Arch.kept``. Raises ArchError where it is none."""
    genotype: dict[str, dict[str, dict[str, str]]] = {}
    first = next(iter(space.operations))  # what an axis that is left out means, as in every architecture
    for kind in space.searched:
        genotype[kind] = {str(node): {} for node in space.edges}
        for state, node in space.pairs:
            edge = decision(kind, (state, node))
            names = [each for each in space.operations if kept.get(f"{edge}.{each}", [0] if each == first else [])]
            if len(names) > 1:
                raise ArchError(f"{edge} keeps {names}; a genotype has one operation per edge")
            genotype[kind][str(node)] |= {str(state): name for name in names}
    check(genotype, space)
    return genotype


def arch_of(genotype: Genotype, space: CellSpace) -> dict[str, tuple[int, ...]]:
    """Every operation axis of the supernet: (0,) where the genotype keeps it, () where not."""
    return {
        f"{decision(kind, pair)}.{each}": (0,) if chosen.get(pair) == each else ()
        for kind, chosen in check(genotype, space).items()
        for pair in space.pairs
        for each in space.operations
    }


def read_genotype(path: str | os.PathLike[str], space: CellSpace) -> Genotype:
    """The genotype of a run folder, checked against a space. Raises ArchError where it is none of it."""
    genotype: Genotype = read_json(path, ArchError)
    try:
        check(genotype, space)
    except ArchError as error:
        raise ArchError(f"{path}: {error}") from error
    return genotype


def check(genotype: Genotype, space: CellSpace) -> dict[str, ChosenOperations]:
    """The chosen operations by kind of cell and edge. Raises ArchError where the genotype is not one of the space."""
    kinds = _mapping(genotype, space.searched, "the genotype")
    return {kind: _chosen(_mapping(nodes, space.edges, kind), space, kind) for kind, nodes in kinds.items()}


def _chosen(nodes: Mapping[str, object], space: CellSpace, kind: str) -> ChosenOperations:
    """The chosen operations of one kind of cell."""
    chosen = ChosenOperations()
    for node, known in space.edges.items():
        where, reads = f"node {node} of {kind}", nodes[str(node)]
        if not isinstance(reads, Mapping) or not set(reads) <= {str(state) for state in known}:
            raise ArchError(f"{where} reads of the states {known}, {{state: operation}}; got {shown(reads)}")
        if len(reads) != space.kept(node):
            raise ArchError(f"{where} has {len(reads)} edges; it needs {space.kept(node)}")
        for state, name in reads.items():
            if not isinstance(name, str) or name not in space.operations:
                raise ArchError(f"{where} has no operation {shown(name)}{hint(str(name), list(space.operations))}")
            chosen[int(state), node] = name
    return chosen


def _mapping(value: object, names: Sequence[str] | Mapping[int, object], what: str) -> Mapping[str, object]:
    """The value, if it is a mapping with exactly these names."""
    wanted = [str(name) for name in names]
    if not isinstance(value, Mapping) or set(value) != set(wanted):
        got = list(value) if isinstance(value, Mapping) else value
        raise ArchError(f"{what} should be a mapping with the keys {wanted}; got {shown(got, 120)}")
    return value


def _shares(scores: Mapping[str, Tensor], edge: str, space: CellSpace) -> Tensor:
    """Softmax (k) over the operations of an edge."""
    names = [f"{edge}.{each}" for each in space.operations]
    wrong = [n for n in names if n not in scores or scores[n].numel() != 1 or not bool(scores[n].isfinite().all())]
    if wrong:
        raise ArchError(f"the rule of DARTS needs one finite score for each of {wrong}; score every operation")
    return torch.stack([scores[name].detach().double().reshape(()) for name in names]).softmax(0)
