"""Every operation with options of all kinds, as plain data."""

from typing import Any

CHANNELS = 8
WIDE = {"in_channels": CHANNELS, "out_channels": CHANNELS}
CELL = {"channels": CHANNELS}
SUM = {
    "structured": {"operation": "structured_convolution", **CELL, "out_channels": CHANNELS, "padding": 1},
    "dense": {"operation": "convolution", **WIDE, "norm": False},
    "skip_connect": {"operation": "skip"},
}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"operation": "convolution", **WIDE},
    "bare": {"operation": "convolution", **WIDE, "kernel": 5, "norm": False, "bias": True},
    "dilated": {"operation": "convolution", **WIDE, "dilation": 2, "stride": 2},
    "grouped": {"operation": "convolution", **WIDE, "groups": 2},
    "separable": {"operation": "separable_convolution", **WIDE, "kernel": 5, "stride": 2},
    "average_pool": {"operation": "average_pool", "in_channels": CHANNELS, "out_channels": 12, "stride": 2},
    "max_pool": {"operation": "max_pool", **WIDE},
    "skip_connection": {"operation": "skip_connection", **WIDE},
    "strided_skip": {"operation": "skip_connection", **WIDE, "stride": 2},
    "sep_conv_3x3": {"operation": "cell_separable", **CELL, "repeats": 2},
    "sep_conv_5x5": {"operation": "cell_separable", **CELL, "kernel": 5, "repeats": 2, "stride": 2, "affine": False},
    "dil_conv_3x3": {"operation": "cell_separable", **CELL, "dilation": 2},
    "dil_conv_5x5": {"operation": "cell_separable", **CELL, "kernel": 5, "dilation": 2, "stride": 2},
    "max_pool_3x3": {"operation": "cell_pool", **CELL, "stride": 2},
    "avg_pool_3x3": {"operation": "cell_pool", **CELL, "kind": "average", "norm": False},
    "skip_connect": {"operation": "cell_skip", **CELL},
    "factorized_reduce": {"operation": "cell_skip", **CELL, "stride": 2},
    "nor_conv_1x1": {"operation": "cell_convolution", **CELL, "kernel": 1},
    "nor_conv_3x3": {"operation": "cell_convolution", **CELL, "out_channels": 12},
    "sparse": {
        "operation": "structured_sparse_convolution",
        **WIDE,
        "supports": ["plus", [[0, 0], [2, 2]]],
        "groups": 2,
        "padding": 1,
        "bias": True,
    },
    "boxes": {"operation": "structured_convolution", **CELL, "out_channels": CHANNELS, "padding": 1, "bias": True},
    "channel_boxes": {"operation": "structured_convolution", "channels": 5, "out_channels": CHANNELS, "stride": 2},
    "depthwise_boxes": {"operation": "structured_convolution", **CELL, "out_channels": CHANNELS, "groups": CHANNELS},
    "local_similarity": {"operation": "local_similarity", **CELL, "embedding": 6, "dilations": [2]},
    "skipping": {
        "operation": "skipping",
        "convolutions": [
            {"in_channels": CHANNELS, "out_channels": 6, "kernel_size": 3, "padding": 1},
            {"in_channels": 6, "out_channels": CHANNELS, "kernel_size": 1, "stride": 2},
        ],
        "between": [{"activation": "ReLU", "eps": 1e-5, "hidden": 4}],
    },
    "choice": {"operation": "choice", "candidates": SUM},
}

STRUCTURED_SPACE = """
replace:
  - candidates:
      dense: {operation: convolution, norm: false}
      structured: {operation: structured_convolution, kernel: 2}
rules:
  - kinds: [operation]
"""
