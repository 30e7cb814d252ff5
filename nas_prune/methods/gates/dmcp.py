"""DMCP: a width is a walk along groups of units, which goes on from each group with a probability that is learnt.

Guo, Wang, Li, Yan, "DMCP: Differentiable Markov Channel Pruning for Neural Networks" (CVPR 2020, arXiv 2005.03354), as
in a public port of its code. The first units always stay; the others come in groups of equal size, and

    p_k = exp(-max(a_k, 0)),   P_k = prod_{j <= k} p_j,   expected width = least + group * sum_k P_k

with p_k the probability that group k stays if the one before it did. At a = 0 the net is whole. What is kept is always
a prefix, so units have no scores of their own, and their order matters: weights learn that the first ones matter most.

The paper's: a learns from the keep values P_k, the weights, alternately, from the widest net, the narrowest and random
ones (the sandwich rule), of which the widest teaches the others. Ours: both learn in one step, in a share ``sampled``
of the passes in a net whose widths are drawn, from which a learns nothing, and no net teaches another; a that has gone
below zero is put back there, where it can still rise (in the port weight decay does so); the budget is whatever penalty
the recipe names, and the rate of a (``search.gate_lr``) the recipe's, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_prune.methods.gates.gate import Gate, gates

HAIR = 2.0**-10  # what the last unit scores below the first: float32 tells 8192 of them apart


@gates.register("dmcp")
class MarkovChain(Gate):
    """``groups``: how many, at most; ``least``: share of the units that always stay (18 and 0.1 in the port: the widths
    0.1, 0.15, ... 1); ``sampled``: share of the passes of training in which a width is drawn."""

    group: Tensor
    hair: Tensor

    def __init__(
        self, size: int, fan_in: Sequence[int], *, groups: int = 18, least: float = 0.1, sampled: float = 0.5
    ) -> None:
        super().__init__(size, fan_in)
        self.sampled = sampled
        width = max(1, int((1 - least) * size / groups + 1e-9))
        count = min(groups, (size - 1) // width)
        first = size - width * count
        self.register_buffer("group", (torch.arange(size) - first).div(width, rounding_mode="floor").clamp(min=-1) + 1)
        self.register_buffer("hair", HAIR * torch.arange(size) / size)
        self.chain = nn.Parameter(torch.zeros(max(1, count)))

    def advance(self, share: float) -> None:  # noqa: ARG002
        """Put numbers below zero back."""
        with torch.no_grad():
            self.chain.clamp_(min=0)

    def probabilities(self) -> Tensor:
        """P (c), with which the group of each unit is reached."""
        rising = self.chain.where(self.chain >= 0, 0.0)  # which has a slope at zero; clamp has none there
        steps = torch.cat([self.chain.new_zeros(1), rising])
        return torch.exp(-steps.cumsum(0))[self.group]

    def score(self, weight: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """P - 1/2 (c), and of units that are reached alike the earlier ones a hair more, in float32, too."""
        return self.probabilities() - 0.5 - self.hair

    def open(self, score: Tensor) -> Tensor:  # noqa: ARG002
        """P (c); in a share of the passes of training, 1 as far as a walk has come, and 0 from there on."""
        reached = self.probabilities()
        drawn = torch.rand((), device=reached.device) < self.sampled
        return torch.where(drawn, self.walked(), reached) if self.training else reached

    @torch.no_grad()
    def walked(self) -> Tensor:
        """The units (c) of a width that is drawn, 1 or 0."""
        stays = torch.rand_like(self.chain) < torch.exp(-self.chain.clamp(min=0))
        whole = torch.cat([stays.new_ones(1), stays]).cumprod(0)
        return whole[self.group].to(self.chain.dtype)

    def charged(self, keep: Tensor) -> Tensor:
        """P (c), whether a width was drawn or not; of a fixed architecture (no gradient), what it keeps."""
        return self.probabilities() if keep.requires_grad else keep

    def narrowed(self, units: Tensor, columns: Sequence[Tensor | None]) -> Gate:
        """This gate for the units (c') that stay, each in its group."""
        small = super().narrowed(units, columns)
        assert isinstance(small, MarkovChain)
        small.chain = nn.Parameter(self.chain.detach().clone())
        small.group = self.group[units].clone()
        return small
