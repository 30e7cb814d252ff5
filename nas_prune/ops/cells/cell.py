"""A cell: in the supernet every edge is a choice between all operations, in a derived network it is one operation.

As in DARTS (arXiv 1806.09055). What differs: a derived cell is built of the very operations that the supernet chose
from, BatchNorm after pooling included, so that it can also take over their weights and computes the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from inspect import signature
from operator import add
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from nas_prune.ops import Choice, Operation, Zero, build, operations
from nas_prune.ops.cells.cell_space import CellSpace, Edge, decision, edge_name
from nas_prune.ops.cells.operations import CellConvolution, CellSkip


@dataclass(frozen=True)
class Stream:
    """What runs between cells: its channels, and how many times smaller than the image it is."""

    channels: int
    reduction: int


class Cell(nn.Module):
    """A cell of a kind that reads ``inputs``, the nearest last, and adds up edges of ``channels``.

    ``chosen``: operation per edge; None: all of them, a choice that all cells of the kind share.
    """

    def __init__(
        self,
        space: CellSpace,
        kind: str,
        inputs: Sequence[Stream],
        channels: int,
        *,
        chosen: Mapping[Edge, str] | None = None,
    ) -> None:
        super().__init__()
        affine = chosen is not None or space.affine
        read = [_projection(stream, inputs[-1], channels, affine) for stream in inputs] if space.project else []
        self.inputs = nn.ModuleList(read or [nn.Identity() for _ in inputs])
        self.edges = nn.ModuleDict()
        self.nodes: list[list[tuple[int, str]]] = []  # of each node: (state, name) of each edge
        for node in space.edges:
            pairs = [pair for pair in space.pairs if pair[1] == node and (chosen is None or pair in chosen)]
            for pair in pairs:
                sizes = {"channels": channels, "stride": space.kinds[kind].stride if pair[0] < space.inputs else 1}
                each = {
                    name: {**_norm(options, affine), **options, **sizes} for name, options in space.operations.items()
                }
                self.edges[edge_name(pair)] = (
                    Choice(candidates=each, shared=decision(kind, pair))
                    if chosen is None
                    else build(each[chosen[pair]])
                )
            self.nodes.append([(pair[0], edge_name(pair)) for pair in pairs])
        self.output, self.stride = space.output, space.kinds[kind].stride
        self.drop_path = DropPath()

    def forward(self, *streams: Tensor) -> Tensor:
        """Tensors (b c h w) of the cells before, the nearest last -> (b o h w). A Zero as an edge costs nothing."""
        states = [project(stream) for project, stream in zip(self.inputs, streams, strict=True)]
        for node in self.nodes:
            live = [self._along(edge, states[state]) for state, edge in node if not isinstance(self.edges[edge], Zero)]
            states.append(reduce(add, live) if live else self._nothing(states[node[-1][0]], node[-1][0]))
        return torch.cat(states[len(streams) :], dim=1) if self.output == "concat" else states[-1]

    def _along(self, edge: str, x: Tensor) -> Tensor:
        """What comes of x along an edge: in training now and then nothing, unless it is x itself, or still a choice."""
        operation = self.edges[edge]
        whole = isinstance(operation, Choice) or (isinstance(operation, CellSkip) and operation.reduction is None)
        out: Tensor = operation(x) if whole else self.drop_path(operation(x))
        return out

    def _nothing(self, x: Tensor, state: int) -> Tensor:
        """What a node is without edges: zeros of the shape that they would have."""
        step = self.stride if state < len(self.inputs) else 1
        return torch.zeros_like(x[:, :, ::step, ::step])


class ResidualBlock(nn.Module):
    """The block between the stages of NAS-Bench-201 (arXiv 2001.00326). Odd sizes round up, as elsewhere."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(c_in, c_out, 1, bias=False))
        first = CellConvolution(channels=c_in, out_channels=c_out, stride=stride)
        self.branch = nn.Sequential(first, CellConvolution(channels=c_out))

    def forward(self, *streams: Tensor) -> Tensor:
        """The cell before, (b i h w) -> (b o h/stride w/stride)."""
        out: Tensor = self.shortcut(streams[-1]) + self.branch(streams[-1])
        return out


def _norm(options: Mapping[str, Any], affine: bool) -> dict[str, bool]:
    """What an operation is told of its BatchNorm: nothing but that it has no scale and shift, where it has one."""
    has_one = "affine" in signature(operations[str(options["operation"])]).parameters
    return {"affine": False} if has_one and not affine else {}


def _projection(stream: Stream, nearest: Stream, channels: int, affine: bool) -> Operation:
    """To the width of the cell and, where the cell before has halved it, to its resolution."""
    if stream.reduction < nearest.reduction:
        return CellSkip(channels=stream.channels, out_channels=channels, stride=2, affine=affine)
    return CellConvolution(channels=stream.channels, out_channels=channels, kernel=1, affine=affine)
