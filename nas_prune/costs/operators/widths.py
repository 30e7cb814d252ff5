"""Widths of many terms at once, as shares of their dense widths: every term compiled once to a sum of monomials.

A term is made of axes by concatenation and product, so its share is a polynomial in the shares of the axes. A cost with
hundreds of terms would spend its time in Python; compiled, all of them are one gather, one product and one sum. Ours.
"""

from collections.abc import Mapping, Sequence
from itertools import product as pairs

import torch
from torch import Tensor, nn

from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Cat, Prod, Striped, Term, Var, resolve

Monomials = dict[tuple[int, ...], float]


class Products(nn.Module):
    """Products of terms, each relative to its dense value: shares of the axes (b n) -> (b p).

    ``products``: the terms that each result multiplies; an empty product is 1. ``names``: the axes behind the n shares;
    all others are dense.
    """

    factors: Tensor
    sums: Tensor
    widths: Tensor

    def __init__(self, axes: Axes, names: Sequence[str], products: Sequence[Sequence[Term]]) -> None:
        super().__init__()
        index = {name: position for position, name in enumerate(names)}
        columns: dict[tuple[tuple[tuple[int, ...], float], ...], int] = {}
        rows = []
        for terms in products:
            expanded = (monomials(axes, term, index) for term in terms)
            moving = (tuple(sorted(each.items())) for each in expanded if each.keys() != {()})
            rows.append([columns.setdefault(each, len(columns)) for each in moving])
        distinct = {key: position for position, key in enumerate({key: None for each in columns for key, _ in each})}
        sums = torch.zeros(len(distinct), len(columns))
        for each, column in columns.items():
            for key, factor in each:
                sums[distinct[key], column] = factor
        self.register_buffer("sums", sums, persistent=False)
        # index n is a share of 1, index t a width of 1: what shorter rows are filled up with
        self.register_buffer("factors", _filled(list(distinct), len(names)), persistent=False)
        self.register_buffer("widths", _filled(rows, len(columns)), persistent=False)

    def forward(self, shares: Tensor) -> Tensor:
        """Products (b p) for shares (b n); 1 where everything is dense."""
        widths = _multiplied(shares, self.factors) @ self.sums
        return _multiplied(widths, self.widths)


def monomials(axes: Axes, term: Term, index: Mapping[str, int]) -> Monomials:
    """The share of a term as {axes multiplied: coefficient}; the coefficients add up to 1."""
    term = resolve(term)
    result: Monomials = {}
    if isinstance(term, Cat):
        for part in term.parts:
            for key, factor in monomials(axes, part, index).items():
                result[key] = result.get(key, 0.0) + factor * part.size / term.size
    elif isinstance(term, Prod):
        result = {(): 1.0}
        for part in term.parts:
            result = _times(result, monomials(axes, part, index))
    else:
        var = term.stripes if isinstance(term, Striped) else term  # of filters that are kept, as good as all
        name = axes.variables.get(var, "") if isinstance(var, Var) else ""
        result[(index[name],) if name in index else ()] = 1.0
    return result


def _times(first: Monomials, second: Monomials) -> Monomials:
    result: Monomials = {}
    for (one, factor), (two, other) in pairs(first.items(), second.items()):
        key = tuple(sorted((*one, *two)))
        result[key] = result.get(key, 0.0) + factor * other
    return result


def _filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of indices (r d), the short ones filled up with ``value``."""
    length = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long).reshape(-1, length)


def _multiplied(values: Tensor, indices: Tensor) -> Tensor:
    """Values (b n) gathered at indices (r d) and multiplied over d -> (b r); index n stands for 1."""
    padded = (
        torch.cat([values, torch.ones_like(values[:, :1])], -1) if values.shape[1] else values.new_ones(len(values), 1)
    )
    result = padded.index_select(1, indices[:, 0])  # four times as fast as padded[:, ...]
    for column in range(1, indices.shape[1]):
        result = result * padded.index_select(1, indices[:, column])
    return result
