"""Which functions of eager code are which operators of the graph: the calls that can be gated.

A call is known by its kind, its module, and how many of that kind came before it there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS: dict[Any, str] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), "convolution"),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), "transposed_convolution"),
    F.linear: "linear",
    F.layer_norm: "layer_norm",
    F.rms_norm: "rms_norm",
    F.group_norm: "group_norm",
    F.batch_norm: "batch_norm",
    F.scaled_dot_product_attention: "attention",
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm), "matmul"),
    **dict.fromkeys((Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__), "matmul"),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), "addmm"),
    torch.einsum: "einsum",
    **dict.fromkeys((torch.mean, Tensor.mean), "mean"),
    **dict.fromkeys((torch.sum, Tensor.sum), "sum"),
    **dict.fromkeys((torch.amax, Tensor.amax), "amax"),
    **dict.fromkeys((torch.amin, Tensor.amin), "amin"),
    **dict.fromkeys((torch.max, Tensor.max), "max"),
    **dict.fromkeys((torch.min, Tensor.min), "min"),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), "softmax"),
    **dict.fromkeys((torch.linalg.vector_norm, torch.norm, Tensor.norm, F.normalize), "norm"),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), "recurrent"),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__), "add"),
}
NODE_KINDS = {
    **dict.fromkeys(("conv1d.default", "conv2d.default", "conv3d.default"), "convolution"),
    **dict.fromkeys(("conv1d.padding", "conv2d.padding", "conv3d.padding"), "convolution"),
    **dict.fromkeys(
        ("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"), "transposed_convolution"
    ),
    "linear.default": "linear",
    "layer_norm.default": "layer_norm",
    "rms_norm.default": "rms_norm",
    "group_norm.default": "group_norm",
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training.default", "_native_batch_norm_legit.no_stats"), "batch_norm"
    ),
    "scaled_dot_product_attention.default": "attention",
    **dict.fromkeys(("matmul.default", "bmm.default", "mm.default"), "matmul"),
    **dict.fromkeys(("addmm.default", "baddbmm.default"), "addmm"),
    "einsum.default": "einsum",
    **dict.fromkeys(("mean.dim", "mean.default"), "mean"),
    **dict.fromkeys(("sum.dim_IntList", "sum.default"), "sum"),
    "amax.default": "amax",
    "amin.default": "amin",
    "max.dim": "max",
    "min.dim": "min",
    **dict.fromkeys(("softmax.int", "_softmax.default"), "softmax"),
    "linalg_vector_norm.default": "norm",
    **dict.fromkeys(("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"), "recurrent"),
    "add.Tensor": "add",
}


OPERANDS = {
    **dict.fromkeys(("convolution", "transposed_convolution", "linear"), ("input", "weight")),
    "attention": ("query", "key", "value"),
}


def counts(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is one of its kind: a sum of two tensors of real numbers, since constants and counters come and
    go; a maximum along a dimension."""
    if kind == "add":
        return len(args) == 2 and all(isinstance(value, Tensor) and value.is_floating_point() for value in args)
    return kind not in ("max", "min") or "dim" in kwargs or (len(args) > 1 and isinstance(args[1], int))
