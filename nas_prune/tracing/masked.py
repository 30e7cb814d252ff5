"""What an operator that looks at a whole gated axis computes: its statistics over the kept units only.

``keep`` is (c) in [0, 1], one number per unit of the dimension that the statistics run over. With hard gates each
function equals the plain one on the kept units alone; with soft gates the mean becomes a weighted mean (ours).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod as product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from nas_prune.tracing.kept_statistics import standardised


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """LayerNorm over the last dimension of x (... c)."""
    return standardised(rearrange(x, "... c -> (...) c"), eps, keep, weight, bias).reshape(x.shape)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """RMSNorm over the last dimension of x (... c)."""
    square = (x * x * keep).sum(-1, keepdim=True) / keep.sum()
    return _affine(x * torch.rsqrt(square + eps), weight, None)


Affine = tuple[Tensor | None, Tensor | None]


def group_norm(x: Tensor, groups: int, affine: Affine, eps: float, keep: Tensor) -> Tensor:
    """GroupNorm of x (b (g k) ...), ``keep`` (k) closing the same positions in every group; affine: weight, bias."""
    inside = repeat(keep, "k -> (k n)", n=x[0, 0].numel())
    y = standardised(x.reshape(x.shape[0] * groups, -1), eps, inside).reshape(x.shape)
    weight, bias = (None if each is None else each.reshape(-1, *(1 for _ in x.shape[2:])) for each in affine)
    return _affine(y, weight, bias)


def standardize(weight: Tensor, scale: Tensor | None, eps: float, keep: Tensor) -> Tensor:
    """Weight standardisation of a weight (1 o n): statistics over the kept entries of n, one pair per filter."""
    y = standardised(weight[0], eps, keep)[None]
    return y if scale is None else y * rearrange(scale, "o -> o 1")


def mean(x: Tensor, dims: tuple[int, ...], keepdim: bool, keep: Tensor) -> Tensor:
    """Mean of x over ``dims``, one of them gated; ``keep`` broadcasts against x, one entry per unit."""
    count = product(x.shape[dim] for dim in dims) / keep.numel() * keep.sum()
    return (x * keep).sum(dims, keepdim=keepdim) / count


def softmax(x: Tensor, dim: int, keep: Tensor) -> Tensor:
    """Softmax of x over ``dim``, closed entries taking no probability; ``keep`` broadcasts against x."""
    top = torch.where(keep > 0, x, -torch.inf).amax(dim, keepdim=True).detach()
    share = (x - top).clamp(max=0) if keep.requires_grad else torch.where(keep > 0, x - top, -torch.inf)
    weight = share.exp() * keep
    return weight / weight.sum(dim, keepdim=True)


def attention(call: Mapping[str, Any], keep: Tensor) -> Tensor:
    """Scaled dot-product attention whose keys are an axis, ``keep`` (s) closing some of them."""
    q, k, v, bias = call["query"], call["key"], call["value"], call["attn_mask"]
    scale = q.shape[-1] ** -0.5 if call["scale"] is None else call["scale"]
    logits = q @ k.transpose(-2, -1) * scale
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    shares: Tensor = F.dropout(softmax(logits, -1, keep), call["dropout_p"])
    return torch.matmul(shares, v)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None or bias is None:
        return y if weight is None else y * weight
    return torch.addcmul(bias, y, weight)


@dataclass(frozen=True)
class MaskedForm:
    """A masked form of an operator: the parameters of the plain one with their defaults, and what takes its place.

    ``function``: (call, dim, keep) -> output, ``call`` holding the arguments by name, ``keep`` (n) masking ``dim``.
    """

    parameters: Mapping[str, Any]
    function: Callable[[Mapping[str, Any], int, Tensor], Any]

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], dim: int, keep: Tensor) -> Any:
        """The masked output for the arguments of a call of the plain operator."""
        given = dict(zip(self.parameters, args, strict=False))
        keep = keep.to(torch.promote_types(args[0].dtype, torch.float32))
        return self.function({**self.parameters, **given, **kwargs}, dim, keep)


def _along(x: Tensor, dim: int, keep: Tensor) -> Tensor:
    return keep.reshape([-1 if d == dim else 1 for d in range(x.ndim)])


def _mean(call: Mapping[str, Any], dim: int, keep: Tensor) -> Tensor:
    x, dims = call["input"], call["dim"]
    dims = (dims,) if isinstance(dims, int) else tuple(dims or range(x.ndim))
    return mean(x, dims, call["keepdim"], _along(x, dim, keep))


def _rms_norm(call: Mapping[str, Any], keep: Tensor) -> Tensor:
    eps = torch.finfo(call["input"].dtype).eps if call["eps"] is None else call["eps"]
    return rms_norm(call["input"], call["weight"], eps, keep)


def striped(weight: Tensor, keep: Tensor) -> Tensor:
    """A weight (n c i j) times one number per stripe (n*i*j)."""
    i, j = weight.shape[2:]
    return weight * rearrange(keep.to(weight.dtype), "(n i j) -> n 1 i j", i=i, j=j)


def _striped(args: list[Any], keep: Tensor) -> None:
    args[1] = striped(args[1], keep)


def _recurrent(args: list[Any], keep: Tensor) -> None:
    """Close units of the state (h) of a recurrent layer where its weights read it: at each step, and in the next layer.

    ``args``: features, states, weights per layer and direction (features, state, biases), whether there are biases,
    layers, dropout, training, whether there are two directions.
    """
    weights, step, directions = list(args[2]), 4 if args[3] else 2, 2 if args[7] else 1
    for first in range(0, len(weights), step):
        weights[first + 1] = weights[first + 1] * keep.to(weights[first + 1].dtype)
        if first >= step * directions:
            weights[first] = weights[first] * keep.to(weights[first].dtype).repeat(directions)
    args[2] = weights


WEIGHTS = {"stripes": _striped, "recurrent": _recurrent}  # what becomes of the weights of a call, in place
FILLS = {"mask": 0.0, "amax": -torch.inf, "amin": torch.inf}  # what a closed unit of an operand is replaced by
_NORM = {"input": None, "normalized_shape": None, "weight": None, "bias": None, "eps": 1e-5}
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ATTENTION = {"query": None, "key": None, "value": None, "attn_mask": None, "dropout_p": 0.0, "is_causal": False}
FORMS = {
    "layer_norm": MaskedForm(_NORM, lambda c, _, keep: layer_norm(c["input"], c["weight"], c["bias"], c["eps"], keep)),
    "rms_norm": MaskedForm(
        {"input": None, "normalized_shape": None, "weight": None, "eps": None}, lambda c, _, keep: _rms_norm(c, keep)
    ),
    "group_norm": MaskedForm(
        {"input": None, "num_groups": None, "weight": None, "bias": None, "eps": 1e-5},
        lambda c, _, keep: group_norm(c["input"], c["num_groups"], (c["weight"], c["bias"]), c["eps"], keep),
    ),
    "standardize": MaskedForm(
        dict.fromkeys(_BATCH_NORM) | {"eps": 1e-5},
        lambda c, _, keep: standardize(c["input"], c["weight"], c["eps"], keep),
    ),
    "mean": MaskedForm({"input": None, "dim": None, "keepdim": False}, _mean),
    "softmax": MaskedForm(
        {"input": None, "dim": -1}, lambda c, dim, keep: softmax(c["input"], dim, _along(c["input"], dim, keep))
    ),
    "attention": MaskedForm(_ATTENTION | {"scale": None}, lambda c, _, keep: attention(c, keep)),
}
