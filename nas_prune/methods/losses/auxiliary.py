"""Auxiliary: a second, small classifier on features in the middle of a network, where gradients then begin as well.

What DARTS trains a genotype with (Liu et al., arXiv 1806.09055; the idea is of Szegedy et al., arXiv 1409.4842):

    cross-entropy(logits) + weight * cross-entropy(head(features))

with the features of the cell at two thirds of the depth, and weight 0.4. The head is that of its code (ReLU, pooling to
2x2, a 1x1 convolution to 128 channels, a 2x2 one to 768, both with BatchNorm and ReLU, a linear layer), but that
features of any size are pooled to 2x2, and that it leaves out a batch of one image while it trains, whose last maps,
1x1, have no statistics (both ours). It is part of the loss, not of the model: it is in checkpoints of the
training, and in nothing that is derived, saved or exported.
"""

from collections.abc import Callable

from torch import Tensor, nn

from nas_prune.base.errors import RecipeError
from nas_prune.methods.losses.cross_entropy import CrossEntropy
from nas_prune.methods.losses.loss import Said, losses


@losses.register("auxiliary")
class Auxiliary(CrossEntropy):
    """``module``: path of the module whose output (b c h w) the head sees; ``weight``: of what the head says."""

    def __init__(self, smoothing: float, *, module: str, weight: float = 0.4) -> None:
        super().__init__(smoothing)
        self.features, self.weight = (module,), weight
        self.head: nn.Module = nn.Identity()
        self.sizes = (0, 0)  # channels that the head sees, classes that it tells apart

    def begin(self, backbone: nn.Module, look: Callable[[], Said]) -> None:  # noqa: ARG002
        """A new head, where there is none that fits. Raises RecipeError for features that are no maps."""
        said = look()
        (seen,) = said.features.values()
        if seen.ndim != 4:
            raise RecipeError(
                f"the loss auxiliary looks at images of features (b c h w); those of {self.features[0]!r} are "
                f"{tuple(seen.shape)}: name another module"
            )
        sizes = (seen.shape[1], said.logits.shape[1])
        if sizes != self.sizes:
            self.head, self.sizes = _head(*sizes).to(seen.device).train(self.training), sizes

    def forward(self, said: Said, targets: Tensor) -> Tensor:
        """The loss, (), the mean over the batch."""
        if self.training and len(targets) == 1:
            return super().forward(said, targets)
        second: Tensor = self.head(said.features[self.features[0]].float())
        return super().forward(said, targets) + self.weight * super().forward(Said(second), targets)


def _head(channels: int, classes: int) -> nn.Sequential:
    """Features (b c h w) -> (b classes)."""
    narrow = [nn.Conv2d(channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
    wide = [nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()]
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), *narrow, *wide, nn.Flatten(), nn.Linear(768, classes))
