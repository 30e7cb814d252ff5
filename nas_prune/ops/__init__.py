"""Operations: what can take the place of a module, one file each. The registry ``operations`` knows their names."""

from nas_prune.ops.candidates import AveragePool, Convolution, MaxPool, SeparableConvolution, SkipConnection
from nas_prune.ops.cells.operations import CellConvolution, CellPool, CellSeparable, CellSkip
from nas_prune.ops.choice import Choice, build, described, first_alone, inherit
from nas_prune.ops.local_similarity import LocalSimilarity
from nas_prune.ops.operation import Operation, Skip, Zero, name_of, operations
from nas_prune.ops.skipping import Saliency, Skipping
from nas_prune.ops.sparse_conv import StructuredSparseConvolution
from nas_prune.ops.stripes.conv import StripeConv, stripe_macs
from nas_prune.ops.structured_conv import StructuredConvolution

__all__ = [
    "AveragePool",
    "CellConvolution",
    "CellPool",
    "CellSeparable",
    "CellSkip",
    "Choice",
    "Convolution",
    "LocalSimilarity",
    "MaxPool",
    "Operation",
    "Saliency",
    "SeparableConvolution",
    "Skip",
    "SkipConnection",
    "Skipping",
    "StripeConv",
    "StructuredConvolution",
    "StructuredSparseConvolution",
    "Zero",
    "build",
    "described",
    "first_alone",
    "inherit",
    "name_of",
    "operations",
    "stripe_macs",
]
