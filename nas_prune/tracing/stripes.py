"""Stripes: one position of one filter, a 1x1 filter of its own, as a unit (Filter Skeleton, arXiv 2009.14410).

A convolution of n filters and an i x j kernel has n*i*j stripes, in this order. They are gated on the weight, which is
the same as leaving the stripe's share out of the sum. Work and parameters of a convolution are those of its live
stripes, at most all stripes of the filters that are kept: exact if a filter that is closed has no live stripe, or no
stripe is closed at all; otherwise too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.fx import Node

from nas_prune.tracing.arch import Arch
from nas_prune.tracing.terms import Fix, Striped, Var
from nas_prune.tracing.walk import Site, Walk, operator

PLAIN = "torch.nn.modules.conv.Conv2d"


@dataclass(frozen=True, eq=False)
class ConvolutionStripes:
    """The stripes of one convolution: its module, its node, the variable of n*i*j units, and the kernel (i, j)."""

    module: str
    node: Node
    var: Var
    kernel: tuple[int, int]

    @property
    def name(self) -> str:
        """Of the axis."""
        return f"{self.module}.stripes"

    def __deepcopy__(
        self, memo: dict[int, Any]
    ) -> ConvolutionStripes:  # a fact about the graph: copies of a model share it
        return self


def stripes(walk: Walk) -> list[ConvolutionStripes]:
    """Every plain, ungrouped convolution of two dimensions with more than one position in its kernel."""
    found = []
    for node in walk.captured.graph.nodes:
        if node.op != "call_function" or operator(node) not in ("conv2d.default", "conv2d.padding"):
            continue
        owner = walk.captured.owner(node)
        weight = node.args[1]
        n, channels, i, j = weight.meta["val"].shape
        plain = str(next(reversed(node.meta["nn_module_stack"].values()))[1]).endswith(PLAIN)
        alone = walk.tensor(weight) == f"{owner}.weight" and len(weight.users) == 1
        if plain and alone and i * j > 1 and channels == node.args[0].meta["val"].shape[1]:
            found.append(ConvolutionStripes(owner, node, Var(n * i * j), (i, j)))
    return found


def enter(walk: Walk, found: list[ConvolutionStripes]) -> dict[str, Striped]:
    """Enter the stripes into the record: where they act, and whose work is theirs; weight -> its stripes."""
    terms: dict[str, Striped] = {}
    for each in found:
        filters, positions = walk.of(each.node.args[1])[0], each.kernel[0] * each.kernel[1]
        walk.sites.append(Site(each.node, "stripes", 1, 0, each.var))
        terms[f"{each.module}.weight"] = live = Striped(filters, each.var, positions)
        (images, taps, _, channels, *bits), *_ = walk.products[each.node]
        walk.products[each.node] = [(images, Fix(taps.size // positions), live, channels, *bits)]
    return terms


def alive(each: ConvolutionStripes, arch: Arch, filters: Tensor | None) -> Tensor:
    """Which stripes of the filters that are kept (all if None) live: (n i j), bool."""
    live = torch.zeros(each.var.size, dtype=torch.bool)
    live[torch.tensor(arch.kept[each.name], dtype=torch.long)] = True
    live = rearrange(live, "(n i j) -> n i j", i=each.kernel[0], j=each.kernel[1])
    return live if filters is None else live[filters]
