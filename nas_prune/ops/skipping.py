"""Skipping: convolutions in a row of which, for a single image, only the channels that it calls for are computed.

After Tang et al., "Manifold Regularized Dynamic Network Pruning" (CVPR 2021, arXiv 2103.05861). A small branch looks at
what a convolution reads, before it runs, and says how salient each of its outputs is for the image:

    pi = min(1000, relu(FC2 relu(FC1 mean(x)))),   kept: pi where pi >= xi, else 0

and what is kept multiplies the output after norm and activation. So neither the filters of the other channels, nor
their norms, nor the columns of the next convolution that read them are needed. Of several images at once, each calls
for other channels, and everything is computed and masked. Ours: the channel of the largest saliency is always kept, so
that there is something to compute; and what a channel is kept with on the whole (``level``) may have moved into the
weights that read it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import SpaceError
from nas_prune.ops.operation import Operation, operations

NOTHING, MOST = -1e4, 1e3  # a threshold below all saliencies, and what they are cut off at; both as in the paper's code
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)
}


class Saliency(nn.Module):
    """The branch: ``channels`` that it sees, ``hidden`` units, ``size`` channels that it speaks of."""

    threshold: Tensor
    level: Tensor

    def __init__(self, channels: int, hidden: int, size: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, size)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.ones_(self.second.bias)
        self.register_buffer("threshold", torch.tensor(NOTHING))
        self.register_buffer("level", torch.ones(size))

    def forward(self, seen: Tensor, on: Tensor | None = None) -> Tensor:
        """Saliencies (b c) of the means (b i) of what the convolution reads; ``on``: which channels these are."""
        weight = self.first.weight if on is None else self.first.weight.index_select(1, on)
        said: Tensor = self.second(F.relu(F.linear(seen, weight)))
        return F.relu(said).clamp(max=MOST)

    def kept(self, saliency: Tensor) -> Tensor:
        """What saliencies (b c) keep (b c): 0 below the threshold, but for the largest of each image."""
        return saliency.where(self.firing(saliency), 0) / self.level

    def firing(self, saliency: Tensor) -> Tensor:
        """Which of the saliencies (b c) are over the threshold, or the largest of their image, and not 0; bool."""
        least = torch.minimum(self.threshold, saliency.detach().amax(1, keepdim=True))
        return (saliency.detach() >= least) & (saliency.detach() > 0)


@operations.register("skipping")
class Skipping(Operation):
    """``convolutions``: keyword arguments of each nn.Conv2d but its groups, which are one; ``between``: of each pair of
    neighbours, the ``activation``, the ``eps`` of the BatchNorm, and how many ``hidden`` units the branch has.
    """

    def __init__(self, *, convolutions: Sequence[Mapping[str, Any]], between: Sequence[Mapping[str, Any]]) -> None:
        plain = {"convolutions": [dict(each) for each in convolutions], "between": [dict(each) for each in between]}
        super().__init__(**plain)
        widths = [(int(each["in_channels"]), int(each["out_channels"])) for each in convolutions]
        fitting = all(one[1] == other[0] for one, other in pairwise(widths))
        unknown = {each["activation"] for each in between} - ACTIVATIONS.keys()
        if not between or len(convolutions) != len(between) + 1 or not fitting or unknown:
            raise SpaceError(
                f"{len(convolutions)} convolutions (inputs, outputs: {widths}) with {len(between)} activations "
                f"{sorted(unknown)} between them make no row: each reads what the one before it writes, and "
                f"activations are among {', '.join(ACTIVATIONS)}"
            )
        self.convolutions = nn.ModuleList(nn.Conv2d(**each) for each in plain["convolutions"])
        self.norms = nn.ModuleList(nn.BatchNorm2d(w[1], b["eps"]) for w, b in zip(widths, between, strict=False))
        self.activations = nn.ModuleList(ACTIVATIONS[each["activation"]]() for each in between)
        self.branches = nn.ModuleList(Saliency(w[0], b["hidden"], w[1]) for w, b in zip(widths, between, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """x (b i h w) -> (b o h w)."""
        # who follows the computation would hold on to the channels that are on
        followed = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return self._of_one(x) if not (followed or self.training) and len(x) == 1 else self._of_all(x)

    def _of_all(self, x: Tensor) -> Tensor:
        """Everything computed, and masked image by image."""
        for convolution, norm, activation, branch in self._parts():
            keep = branch.kept(branch(x.mean((2, 3))))
            x = activation(norm(convolution(x))) * keep[:, :, None, None]
        last: Tensor = self.convolutions[-1](x)
        return last

    def _of_one(self, x: Tensor) -> Tensor:
        """Of one image, what it calls for; ``on`` says which channels those of x are."""
        on = None
        for convolution, norm, activation, branch in self._parts():
            keep = branch.kept(branch(x.mean((2, 3)), on))[0]
            now = keep.nonzero().flatten()
            now = now if len(now) else now.new_zeros(1)
            x = activation(_normalised(norm, _convolved(convolution, x, on, now), now))
            x, on = x * keep[now][:, None, None], now
        return _convolved(self.convolutions[-1], x, on, None)

    def _parts(self) -> Any:
        """(convolution, norm, activation, branch) of all convolutions but the last."""
        return zip(self.convolutions, self.norms, self.activations, self.branches, strict=False)


def _convolved(convolution: nn.Module, x: Tensor, read: Tensor | None, written: Tensor | None) -> Tensor:
    """What some filters of a convolution make of some of its inputs; None: of all."""
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight, convolution.bias
    if written is not None:
        weight, bias = weight.index_select(0, written), None if bias is None else bias[written]
    weight = weight if read is None else weight.index_select(1, read)
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding, convolution.dilation)


def _normalised(norm: nn.Module, x: Tensor, on: Tensor) -> Tensor:
    """What a BatchNorm makes of some of its channels, by its running statistics."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return F.batch_norm(x, mean[on], variance[on], norm.weight[on], norm.bias[on], eps=norm.eps)
