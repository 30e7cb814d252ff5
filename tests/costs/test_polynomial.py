"""A sum of products of widths is the same, multiplied out: at numbers, at tensors, at columns, and its gradient."""

from math import prod

import pytest
import torch
from zoo import traced

from nas_prune.costs.polynomial import Polynomial

NETS = ["test_resnet", "test_vit", "densenet121"]


@pytest.mark.parametrize("name", NETS)
def test_a_polynomial_is_the_sum_of_products_of_widths(name: str) -> None:
    axes = traced(name).axes
    products = [terms for node in axes.walk.products.values() for terms in node]
    polynomial, generator = Polynomial(axes, products), torch.Generator().manual_seed(0)
    left = {
        each: axis.dense * torch.rand(3, generator=generator, dtype=torch.float64) for each, axis in axes.free.items()
    }
    columns = {each: sizes.requires_grad_() for each, sizes in left.items()}
    several, plain = (f(columns) for f in (polynomial, lambda sizes: summed(axes, products, sizes)))
    assert torch.allclose(several, plain)
    given = list(columns.values())
    seen = [torch.autograd.grad(total.log().sum(), given, allow_unused=True) for total in (several, plain)]
    assert any(each is not None for each in seen[0])
    assert all((a is None and b is None) or torch.allclose(a, b) for a, b in zip(*seen, strict=True))
    one = {each: float(sizes[0].detach()) for each, sizes in columns.items()}
    assert polynomial(one) == pytest.approx(float(plain[0].detach()))
    assert polynomial({}) == summed(axes, products, {}), "exact at plain numbers"


def summed(axes, products, sizes):
    """The same, as it is written."""
    return sum(prod(axes.width(term, sizes) for term in terms) for terms in products)


def test_nothing_costs_nothing() -> None:
    assert Polynomial(traced("test_resnet").axes, [])({}) == 0
