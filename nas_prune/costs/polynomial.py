"""A sum of products of terms as one table of monomials: a handful of operations, however many layers there are.

It is part of every step of training that has a budget.
"""

from itertools import product as combinations
from math import prod as product
from typing import Any

import torch
from torch import Tensor

from nas_prune.costs.cost import Sizes
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Cat, Prod, Striped, Term, Var, resolve

Factor = str | Striped  # the size of an axis, or live stripes
Monomial = tuple[float, tuple[Factor, ...]]


class Polynomial:
    """``polynomial(sizes)``: the sum over ``products`` of the product of the widths of their terms."""

    def __init__(self, axes: Axes, products: list[tuple[Term, ...]]) -> None:
        self.axes = axes
        found = [each for terms in products for each in _multiplied([_monomials(axes, term) for term in terms])]
        self.factors: dict[Factor, int] = {}
        for _, factors in found:
            for factor in factors:
                self.factors.setdefault(factor, len(self.factors))
        self.coefficients = [coefficient for coefficient, _ in found]
        longest = max((len(factors) for _, factors in found), default=0)
        one = len(self.factors)
        rows = [[*(self.factors[factor] for factor in factors), *[one] * longest][:longest] for _, factors in found]
        self.columns = [list(column) for column in zip(*rows, strict=True)]

    def __call__(self, sizes: Sizes) -> Tensor | float:
        """Its value; exact where the sizes are plain numbers."""
        values = [*(self._value(factor, sizes) for factor in self.factors), 1.0]
        like = next((value for value in values if isinstance(value, Tensor)), None)
        if like is None:
            places = zip(*self.columns, strict=True) if self.columns else [()] * len(self.coefficients)
            each = (product(values[place] for place in row) for row in places)
            return sum(map(float.__mul__, self.coefficients, each))
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        given: dict[str, Any] = {"dtype": dtype, "device": like.device}
        table = torch.stack([torch.as_tensor(value, **given).expand_as(like) for value in values])
        total = torch.tensor(self.coefficients, **given).reshape(-1, *(1 for _ in like.shape))
        for column in self.columns:
            total = total * table[torch.tensor(column, device=like.device)]
        return total.sum(0)

    def _value(self, factor: Factor, sizes: Sizes) -> Tensor | float:
        if isinstance(factor, Striped):
            return self.axes.width(factor, sizes)
        return sizes[factor] if factor in sizes else float(self.axes[factor].dense)


def _monomials(axes: Axes, term: Term) -> list[Monomial]:
    """The width of a term as a sum of monomials."""
    term = resolve(term)
    if isinstance(term, Cat):
        return [each for part in term.parts for each in _monomials(axes, part)]
    if isinstance(term, Prod):
        return _multiplied([_monomials(axes, part) for part in term.parts])
    if isinstance(term, Striped):
        return [(1.0, (term,))]
    name = axes.variables.get(term) if isinstance(term, Var) else None
    return [(float(term.size), ())] if name is None else [(1.0, (name,))]


def _multiplied(sums: list[list[Monomial]]) -> list[Monomial]:
    """A product of sums, multiplied out."""
    return [
        (product(coefficient for coefficient, _ in chosen), tuple(each for _, factors in chosen for each in factors))
        for chosen in combinations(*sums)
    ]
