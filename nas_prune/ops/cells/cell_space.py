"""A space of cells: the ``cell:`` part of a search-space file, which says what a cell is and where cells stand.

DARTS (arXiv 1806.09055) and NAS-Bench-201 (arXiv 2001.00326) are two such files. A cell is a small graph. Its states
are its inputs and then its nodes; a node is the sum of its edges, and an edge is one of the operations, from a state.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from math import comb, prod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from nas_prune.base.errors import SpaceError, shown
from nas_prune.base.files.mistakes import explained
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.base.registry import hint

Edge = tuple[int, int]  # (state that is read, node that reads it)


def _small(share: object) -> object:
    """A share of the depth as one may write it: 0.5, or 1/3; never 1e999999999, which would be computed."""
    if isinstance(share, str) and not re.fullmatch(r"[0-9]{1,4}(/[0-9]{1,4}|\.[0-9]{1,9})?", share):
        raise ValueError("a share of the depth is written 0.5 or 1/3")
    return share


class CellKind(BaseModel):
    """One kind of cell, all of which share their decisions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stride: Literal[1, 2] = Field(1, description="2: half the resolution, twice the width from here on")
    at: list[Annotated[Fraction, BeforeValidator(_small)]] = Field(
        [], description="shares of the depth where it stands; none: wherever no other kind does"
    )
    searched: bool = Field(True, description="false: a residual block, not a cell")


class CellSpace(BaseModel):
    """What a cell is, and where cells of each kind stand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: Literal[1, 2] = Field(description="how many of the cells before it a cell reads")
    project: bool = Field(description="whether inputs go through ReLU, 1x1 convolution and norm to the cell's width")
    edges: dict[int, list[int]] = Field(min_length=1, description="node: the states that it may read")
    edges_per_node: PositiveInt | None = Field(None, description="how many a genotype keeps; none: all")
    output: Literal["concat", "last"] = Field(description="all nodes one after the other, or the last node")
    operations: dict[str, dict[str, Any]] = Field(min_length=1, description="name: {operation: name, **options}")
    kinds: dict[str, CellKind] = Field(min_length=1, description="kinds of cells")
    stem: PositiveInt = Field(1, description="width of the stem, in widths of the first cell")
    stem_reduction: Literal[1, 2, 4, 8] = Field(
        1, description="how many times smaller than the image the first cell is"
    )
    affine: bool = Field(
        True, description="false: BatchNorms have no scale and shift while there is a choice; those of a genotype have"
    )
    final_norm: bool = Field(False, description="whether BatchNorm and ReLU come before the classifier")

    @classmethod
    def of(cls, space: str | Mapping[str, Any]) -> Self:
        """A shipped space by name, or an own one as plain data; ``like: name`` in it: as that one, but for the rest.

        No other file is read: a name may be a stranger's.
        """
        known, content = _shipped(), dict(space) if isinstance(space, Mapping) else {"like": space}
        name = content.pop("like", None)
        if name is not None and name not in list(known):
            raise SpaceError(f"no space of cells is called {shown(name)}{hint(str(name), known)}")
        try:
            return cls.model_validate(content if name is None else {**known[name], **content})
        except ValidationError as error:
            raise SpaceError(f"not a space of cells: {explained(error, cls)}") from None

    @property
    def pairs(self) -> list[Edge]:
        """Every edge of a cell."""
        return [(state, node) for node, states in self.edges.items() for state in states]

    @property
    def width(self) -> int:
        """Channels that a cell hands on, in channels of an edge."""
        return len(self.edges) if self.output == "concat" else 1

    @property
    def architectures(self) -> int:
        """How many genotypes there are."""
        per_node = [(len(states), self.kept(node)) for node, states in self.edges.items()]
        per_cell = prod(comb(edges, kept) * len(self.operations) ** kept for edges, kept in per_node)
        return int(per_cell ** len(self.searched))

    @property
    def searched(self) -> list[str]:
        """The kinds that are searched."""
        return [name for name, kind in self.kinds.items() if kind.searched]

    def kept(self, node: int) -> int:
        """How many edges of a node a genotype keeps."""
        return self.edges_per_node or len(self.edges[node])

    def layout(self, layers: int) -> dict[str, str]:
        """Name of each cell in a network of so many layers -> its kind."""
        placed = {int(at * layers): name for name, kind in self.kinds.items() for at in kind.at}
        (usual,) = (name for name, kind in self.kinds.items() if not kind.at)
        kinds = [placed.get(layer, usual) for layer in range(layers)]
        return {f"{kind}_{layer}": kind for layer, kind in enumerate(kinds)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What the types cannot say."""
        if list(self.edges) != list(range(self.inputs, self.inputs + len(self.edges))):
            raise ValueError(f"edges: nodes are numbered from {self.inputs}, after the inputs; got {list(self.edges)}")
        for node, states in self.edges.items():
            if sorted(set(states)) != states or not all(0 <= state < node for state in states):
                raise ValueError(f"edges: node {node} reads earlier states in rising order, not {states}")
            if not 1 <= self.kept(node) <= len(states):
                raise ValueError(f"edges: node {node} has {len(states)} edges and should keep {self.kept(node)}")
        usual = [name for name, kind in self.kinds.items() if not kind.at]
        if len(usual) != 1 or not self.searched or not all(name.isidentifier() for name in self.kinds):
            raise ValueError("kinds: plain names, one kind without `at`, which stands everywhere else, one searched")
        if any(not 0 <= at < 1 for kind in self.kinds.values() for at in kind.at):
            raise ValueError("kinds: `at` are shares of the depth, such as 1/3, from 0 to below 1")
        changing = any(self.kinds[name].stride == 2 for name in self.searched) or self.output == "concat"
        if not self.project and (self.inputs > 1 or self.stem > 1 or changing):
            raise ValueError("project: false needs one input, stem 1, output last, and no stride in searched cells")
        return self


def edge_name(edge: Edge) -> str:
    """The name of an edge, part of the paths of modules and axes: 0_to_2."""
    return f"{edge[0]}_to_{edge[1]}"


def decision(kind: str, edge: Edge) -> str:
    """The name under which all cells of a kind decide about an edge: normal.0_to_2."""
    return f"{kind}.{edge_name(edge)}"


def _shipped() -> dict[str, Any]:
    """The shipped spaces of cells, as plain data."""
    files = {path.stem: read_mapping(path, SpaceError) for path in sorted(shipped("search_spaces").glob("*.yaml"))}
    return {name: content["cell"] for name, content in files.items() if "cell" in content}
