"""Statistics over kept units are those of the plain operator without the others, and so are their gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from zoo import apart as apart_of

from nas_prune.tracing.kept_statistics import standardised
from nas_prune.tracing.masked import group_norm

EXACT = 1e-9  # float64
EPS = 1e-2


def apart(expected: Tensor, got: Tensor) -> float:
    """Of what asks for a gradient, too."""
    return apart_of(expected.detach(), got.detach())


def drawn(*shape: int) -> Tensor:
    """Numbers between 0 and 1 that ask for a gradient."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


@pytest.mark.parametrize("keep", [drawn(7), (drawn(7).detach() > 0.5).double().requires_grad_()])
def test_the_gradient_is_that_of_the_formula(keep: Tensor) -> None:
    inputs = (drawn(5, 7), keep, drawn(7), drawn(7))

    def standard(x: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return standardised(x, EPS, keep, weight, bias)

    assert 0 < float(keep.detach().sum()) < 7
    assert torch.autograd.gradcheck(standard, inputs)
    assert torch.autograd.gradgradcheck(standard, inputs), "a criterion may ask for second derivatives"


def test_second_derivatives_are_right_where_the_input_was_made_of_the_same_keep_values() -> None:
    x, weight, bias = drawn(3, 5).detach(), drawn(5).detach(), drawn(5).detach()

    def twice(keep: Tensor) -> Tensor:
        once = standardised(x * keep, EPS, keep, weight, bias)
        return standardised(once.tanh() * keep, EPS, keep, weight, bias).cos()

    assert torch.autograd.gradcheck(twice, (drawn(5),))
    assert torch.autograd.gradgradcheck(twice, (drawn(5),))


def test_kept_units_are_a_layer_norm_of_their_own() -> None:
    x, weight, bias = drawn(5, 7), drawn(7), drawn(7)
    kept = torch.tensor([0, 2, 3, 6])
    keep = torch.zeros(7, dtype=torch.float64).index_fill(0, kept, 1)
    got = standardised(x, EPS, keep, weight, bias)[:, kept]
    expected = F.layer_norm(x[:, kept], (4,), weight[kept], bias[kept], EPS)
    seen = [torch.autograd.grad(y.cos().sum(), (x, weight, bias)) for y in (got, expected)]
    assert apart(expected, got) <= EXACT
    assert all(apart(mine, plain) <= EXACT for plain, mine in zip(*seen, strict=True))


def test_kept_positions_are_a_group_norm_of_their_own() -> None:
    x, weight, bias = drawn(2, 6, 4), drawn(6), drawn(6)
    kept, keep = torch.tensor([0, 2, 3, 5]), torch.tensor([1.0, 0, 1], dtype=torch.float64)
    got = group_norm(x, 2, (weight, bias), EPS, keep)[:, kept]
    assert apart(F.group_norm(x[:, kept], 2, weight[kept], bias[kept], EPS), got) <= EXACT


def test_the_gradient_of_a_unit_far_from_zero_survives_in_float32() -> None:
    x, keep = drawn(6, 16).detach() + 30, drawn(16).detach()
    found = []
    for kind in (torch.float64, torch.float32):
        given = [each.to(kind).requires_grad_() for each in (x, keep)]
        found.append(torch.autograd.grad(standardised(given[0], 1e-6, given[1]).cos().sum(), given))
    assert all(apart(double, single.double()) <= 1e-3 for double, single in zip(*found, strict=True))
