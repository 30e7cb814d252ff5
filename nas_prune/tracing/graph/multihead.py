"""torch's multi-head attention with widths of its own: heads, head_dim and the stream need not multiply up.

``nn.MultiheadAttention`` computes head_dim from the embedding, inside of one function, where no gate reaches it. Here
the same is written out. Parameters, names and results are torch's, and where the widths multiply up, so is the class.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPTIONS: dict[str, Any] = {"key_padding_mask": None, "need_weights": True, "attn_mask": None}
OPTIONS |= {"average_attn_weights": True, "is_causal": False}


class MultiheadAttention(nn.MultiheadAttention):
    """Attention of ``num_heads`` heads, multiplied by ``scale``. Made by ``open_up``."""

    scale: float
    _packed: bool

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Any]:
        """As torch's, for the same arguments: the output, and the weights (b n s), or (b heads n s), if needed."""
        options = OPTIONS | dict(zip(OPTIONS, given, strict=False)) | named
        batched = query.ndim == 3
        inputs = [x if batched else x[None] for x in (query, key, value)]
        inputs = [x if self.batch_first or not batched else x.transpose(0, 1) for x in inputs]
        weights, biases = self._projections()
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        q, k, v = (self._heads(x) for x in (q, k, v))
        mask = self._mask(q, options["key_padding_mask"], options["attn_mask"])
        if mask is None and options["is_causal"]:
            mask = _float_mask(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1), q)
        dropout, shares = self.dropout if self.training else 0.0, None
        if options["need_weights"]:
            scores = q @ k.transpose(-2, -1) * self.scale
            shares = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = shares @ v
            shares = shares.mean(1) if options["average_attn_weights"] else shares
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        y = y if self.batch_first or not batched else y.transpose(0, 1)
        return y if batched else y[0], shares if batched or shares is None else shares[0]

    def _projections(self) -> tuple[Any, Any]:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return self.in_proj_weight.chunk(3) if self._packed else weights, biases

    def _heads(self, x: Tensor) -> Tensor:
        """(b n (h d)) -> (b h n d)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores (b h n s): both masks, True being closed."""
        if mask is not None:
            mask = _float_mask(mask, q)
            mask = mask if mask.ndim == 2 else mask.view(q.shape[0], self.num_heads, *mask.shape[1:])
        if padding is None:
            return mask
        padding = _float_mask(padding if padding.ndim == 2 else padding[None], q)[:, None, None]
        return padding if mask is None else padding + mask


def _float_mask(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def open_up(model: nn.Module) -> None:
    """Let the attentions of torch in a model be of the class above, in place; they compute the same."""
    for module in model.modules():
        plain = type(module) is nn.MultiheadAttention
        if plain and isinstance(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn:
            module.__class__ = MultiheadAttention
            assert isinstance(module, MultiheadAttention)
            module.scale, module._packed = module.head_dim**-0.5, module._qkv_same_embed_dim
            module._qkv_same_embed_dim = False  # the layers around it would pass it by, straight to its weights


def close_up(model: nn.Module) -> None:
    """Let them be torch's again, where the widths allow it, in place."""
    for module in model.modules():
        if type(module) is MultiheadAttention:
            rows = {len(weight) for weight in module._projections()[0]}
            width, heads = module.out_proj.out_features, module.num_heads
            module.embed_dim, module.head_dim = width, width // heads
            if rows == {width} and width % heads == 0 and module.scale == module.head_dim**-0.5:
                module._qkv_same_embed_dim = module._packed
                del module.scale, module._packed
                module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]


def has_attention(model: nn.Module) -> bool:
    """Whether a model has attentions of torch that are still closed."""
    return any(type(module) is nn.MultiheadAttention for module in model.modules())
