"""The structural penalty: how far the kernels of some convolutions are from being structured.

Bhalgat et al., "Structured Convolutions for Efficient Neural Network Design" (NeurIPS 2020, arXiv 2008.02454):

    alpha * sum over layers of  || (I - Q) W ||_F / || W ||_F

with Q the projector onto the structured kernels. A ratio, so that shrinking a kernel does not help. Once it is small, a
``structured_convolution`` like the layer computes almost the same. The normalisation of the paper is as far as known.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError
from nas_prune.costs import Budget
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.penalty import Penalty, penalties
from nas_prune.ops.structured_conv import bases, unstructured


@penalties.register("structural")
class StructuralPenalty(Penalty):
    """``layers``: pattern over the names of convolutions -> ``kernel`` (n) and ``channels`` (c, all if left out).

    ``budget``: every penalty of a recipe is handed the budget; this one has no use for it.
    """

    def __init__(
        self,
        budget: Budget | None = None,  # noqa: ARG002
        *,
        layers: Mapping[str, Mapping[str, int]],
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers, self.alpha = layers, alpha
        self._spans: dict[str, list[Tensor]] = {}

    def forward(self, gated: GatedModel) -> Tensor:
        """The penalty, (), for the weights as they are."""
        return self.alpha * torch.stack([self._share(*layer) for layer in self._chosen(gated.backbone)]).sum()

    def _chosen(self, backbone: nn.Module) -> Iterator[tuple[str, Tensor, Mapping[str, int]]]:
        """(name, weight, sizes) of each layer. Raises SpaceError where a pattern is of no convolution."""
        convolutions = {name: each for name, each in backbone.named_modules() if isinstance(each, nn.Conv2d)}
        for pattern, sizes in self.layers.items():
            names = [name for name in convolutions if fnmatchcase(name, pattern)]
            if not names:
                raise SpaceError(f"structural penalty: {pattern!r} is no convolution of the model; correct the name")
            for name in names:
                yield name, convolutions[name].weight, sizes

    def _share(self, name: str, weight: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The share of a weight that is not structured, between 0 and 1."""
        if name not in self._spans or self._spans[name][0].type() != weight.type():
            channels = sizes.get("channels", weight.shape[1])
            self._spans[name] = bases(weight.detach(), sizes.get("kernel", weight.shape[2]), channels)
        tiny = torch.finfo(weight.dtype).tiny
        rest = torch.linalg.vector_norm(unstructured(weight, self._spans[name]))
        share: Tensor = rest / torch.linalg.vector_norm(weight).clamp(min=tiny)
        return share
