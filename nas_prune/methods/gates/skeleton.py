"""Filter Skeleton: one number per stripe of a convolution, multiplied onto the weight. What becomes small, dies.

Meng et al., "Pruning Filter in Filter" (arXiv 2009.14410). The paper's: numbers of one at first, moved by the task and
an L1 penalty (``penalties/skeleton.py``); at or below the threshold a number counts as zero, and it gets no gradient.
Ours: dead is dead. In the public code the momentum of an optimizer may move a dead number over the threshold again;
here a stripe that was seen dead while training never comes back. And a number counts as zero at once, not after one
more step with its small value. The paper trains numbers as weights are, by the one SGD, its schedule and its weight
decay: ``search.gate_lr: null``; with a rate of their own, Adam moves them.

Two classes, as the two kinds of axis differ in what they have. The stripes of a convolution own numbers; the filters
own none: a filter lives while any of its stripes does, so its gate is a function of the numbers of its stripes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.axis import Kind
from nas_prune.methods.gates.gate import Gate, HardStep, gates
from nas_prune.methods.gates.mask import Mask
from nas_prune.tracing.masked import striped as on_stripes


@gates.register("skeleton")
class Skeleton(Gate):
    """keep = FS * 1[|FS| > threshold], with any sign. Units of a stripe axis are ordered (n i j).

    ``threshold``: the paper's 0.05; its code runs with 0.01.
    """

    seen_dead: Tensor

    def __init__(self, size: int, fan_in: Sequence[int], *, threshold: float = 0.05) -> None:
        super().__init__(size, fan_in)
        self.threshold = threshold
        self.skeleton = nn.Parameter(torch.ones(size))
        self.register_buffer("seen_dead", torch.zeros(size, dtype=torch.bool))

    @classmethod
    def on(cls, kind: Kind, size: int, fan_in: Sequence[int], *, striped: bool, **options: Any) -> Gate:
        """Numbers for stripes; filters live while a stripe of theirs does; whatever else there is, stays."""
        if kind == "stripe":
            return cls(size, fan_in, **options)
        return SkeletonFilters(size, [], **options) if striped else Mask(size, fan_in)

    @property
    def live(self) -> Tensor:
        """Which stripes live (c), bool."""
        return (self.skeleton.detach().abs() > self.threshold) & ~self.seen_dead

    def score(self, weight: Sequence[Tensor] = ()) -> Tensor:  # noqa: ARG002
        """|FS| - threshold (c); a dead stripe counts as FS = 0, as in the paper."""
        live = self.live
        if self.training:
            self.seen_dead |= ~live
        return self.skeleton.abs().where(live, 0) - self.threshold

    def open(self, score: Tensor) -> Tensor:
        """The skeleton (c) where it lives, elsewhere 0 without a gradient."""
        return self.skeleton.where(score.detach() > 0, 0)

    def charged(self, keep: Tensor) -> Tensor:
        """The magnitude (c), of which one makes a stripe whole."""
        return keep.abs().clamp(max=1)

    @torch.no_grad()
    def fold(self, weight: Tensor) -> Tensor:
        """FS * weight; FS is 1 where it lives, and 0 elsewhere, from then on."""
        folded = on_stripes(weight, self.forward([]))
        self.skeleton.copy_(self.live)
        return folded


class SkeletonFilters(Gate):
    """The gate of an axis of filters whose stripes have skeletons; it learns nothing itself, and so has no name.

    Its ``weight`` are the skeletons of all convolutions that write the axis, [(c i*j), ...].
    """

    of_stripes = True

    def __init__(self, size: int, fan_in: Sequence[int], *, threshold: float = 0.05) -> None:
        super().__init__(size, fan_in)
        self.threshold = threshold

    def score(self, weight: Sequence[Tensor]) -> Tensor:
        """The largest |FS| over all writers, less the threshold (c)."""
        return torch.cat([rows.abs() for rows in weight], 1).amax(1) - self.threshold

    def open(self, score: Tensor) -> Tensor:
        """1 while a stripe lives, else 0. The surrogate gradient is ours, and a budget's alone: the task moves numbers
        through the weights that they are multiplied onto. It stops at dead filters.
        """
        step: Tensor = HardStep.apply(score)
        return step.where(score.detach() >= 0, 0)
