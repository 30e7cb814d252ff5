"""Standardisation over kept units, with its own gradient: a step of training is made of few passes over the data.

What autograd makes of the formula reads and writes everything some twenty times, in every block of a transformer.
"""

from typing import Any

import torch
from torch import Tensor

from nas_prune.tracing.full_precision import full_precision


def standardised(
    x: Tensor, eps: float, keep: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias of every row of x (r c), statistics weighted by ``keep`` (c).

    Closed units go through the same line, but say nothing about its mean and variance.
    """
    weight = torch.ones_like(keep) if weight is None else weight.to(keep.dtype)
    bias = torch.zeros_like(keep) if bias is None else bias.to(keep.dtype)
    with full_precision(x.device):
        result: Tensor = _Standardised.apply(eps, x.to(keep.dtype), keep, weight, bias)
    return result


def _centred(x: Tensor, keep: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x less its mean (r c), the mean (r 1), and one by the deviation (r 1)."""
    share = keep / keep.sum()
    mean = (x @ share)[:, None]
    centred = x - mean
    return centred, mean, torch.rsqrt((centred * centred) @ share + eps)[:, None]


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, *tensors: Tensor) -> Tensor:
        """The result (r c)."""
        x, keep, weight, bias = tensors
        y, mean, inverse = _centred(x, keep, eps)
        ctx.save_for_backward(*tensors, mean, inverse)
        ctx.eps = eps
        return torch.addcmul(bias, y.mul_(inverse), weight, out=y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """LayerNorm's own backward with our statistics, and what is different where units do not count alike.

        LayerNorm subtracts from the gradient of each unit the same share u of two sums over the row; here that is
        c * share(unit) * u. The gradient of ``keep`` is made of sums of u * (x - mean) over the rows.
        """
        x, keep, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            # of these names only, not of what x was made of: keep may be among that
            inputs = x, keep, weight, bias = tuple(
                each.view_as(each).requires_grad_() for each in (x, keep, weight, bias)
            )
            centred, _, inverse = _centred(x, keep, ctx.eps)
            y = centred * inverse * weight + bias
            return None, *torch.autograd.grad(y, inputs, gradient, create_graph=True, materialize_grads=True)
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, x, x.shape[1:], mean, inverse, weight, bias, [True, True, True]
        )
        whole, of_keep = keep * (len(keep) / keep.sum()), None
        if ctx.needs_input_grad[2]:
            row = (gradient @ weight)[:, None] * inverse
            spread = weight * of_weight - (of_x * x).sum(0) + (mean.T @ of_x)[0]
            centre = (row.T @ x)[0] - (row * mean).sum()
            of_keep = (spread @ whole - centre - len(keep) * spread) / (2 * keep.sum())
        of_x = of_x.mul_(whole).addcmul_(gradient * inverse, weight * (1 - whole))
        return None, of_x, of_keep, of_weight, of_bias
