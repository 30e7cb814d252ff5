"""Sampling: the same relative error in every layer, and as many units of each as sampling needs to stay within it.

Liebenwein et al., "Provable Filter Pruning for Efficient Neural Networks" (arXiv 1911.07412); constants as in the
authors' code. Of units with sensitivities s (the criterion ``sensitivity``) that a layer with P positions and a kernel
of k x k reads, drawn with replacement with p = s / S, S the sum of s,

    S~ = 2 C S ln(8 (P + 1) k^2 / delta),   C = 3           draws(eps) = max(1, ceil(3 (6 + 2 eps) S~ / eps^2))

keep every sum of weights of one sign within a share eps of what it was, with probability 1 - delta. The number of
different units to be expected, ceil(sum of 1 - (1 - p)^draws), is the width of the axis. One eps for all layers, the
smallest whose network is within the limit, is found by bisection. ``variant``:

    deterministic   the units of the highest sensitivities stay, with their weights (the authors' default)
    random          the units that are drawn stay; who reads one that was drawn c times multiplies it by c / (draws p)
    hybrid          who has p >= 1 / draws stays for certain, the rest is drawn and reweighted among itself

Ours: an axis that several layers read takes the largest factor ln(...) of theirs, so the guarantee holds in each; for
``random`` and ``hybrid``, the draws of an axis are one sequence, of which a smaller eps takes more, so what counts is
the cost of the units really drawn, not of those to be expected. Where a divisor or a minimum asks for another width,
the drawn units of the lowest sensitivities go, or the best ones stay as they are: then the estimate is biased. Axes
that anything but a plain convolution or linear layer reads cannot be reweighted, and are always deterministic; of
branches and candidates the best stay. Weights are reweighted at the readers, as an edit of the decision. With the
budgets of practice eps is above 1, and the guarantee empty: the decision says it beside the error that is measured
(``guarantee``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from nas_prune.base.axis import BITS, Axis
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, axes_of, mixing, weight_of
from nas_prune.methods.scores import Scores, finite
from nas_prune.methods.selectors.guarantee import said
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.tracing.arch import Arch, allowed_width

Variant = Literal["deterministic", "random", "hybrid"]
C = 3.0  # authors' code
LOWEST, HIGHEST = 1e-140, 1e150  # errors: everything stays, one draw; nearly the bracket of the authors' code
HALVINGS = 64  # of that range, on a logarithmic scale: to a ratio of 1 + 4e-17
LEAST = 1e-30  # sum of sensitivities
LONGEST = 1 << 16  # draws; who has more keeps whatever can be drawn, as it is


@dataclass(frozen=True)
class Sampled:
    """One axis: probabilities ``p`` (c) of its units, S~, the sequence of draws, and what is made of them."""

    axis: Axis
    minimum: int
    p: Tensor
    tilde: float
    sequence: Tensor
    variant: Variant

    def factors(self, eps: float) -> Tensor:
        """What the readers multiply each unit by (c); 0 for a unit that goes."""
        m = draws(self.tilde, eps)
        if self.variant == "deterministic":
            return self._of_width(torch.zeros_like(self.p), ceil(round(float(distinct(self.p, m).sum()), 9)))
        certain = self.p * m >= (1 if self.variant == "hybrid" else LONGEST)
        found = reweighted(self.p, self.sequence[: int(min(m, LONGEST))], certain)
        return self._of_width(found, int((found > 0).sum()))

    def _of_width(self, factors: Tensor, wanted: int) -> Tensor:
        """The best units, those that were drawn first, of a width that is allowed."""
        width = max(self.minimum, allowed_width(self.axis, wanted))
        order = (self.p + (factors > 0) * 2).argsort(descending=True, stable=True)[:width]
        kept = torch.where(factors[order] > 0, factors[order], 1.0)
        return torch.zeros_like(self.p).index_copy(0, order, kept)


def draws(tilde: float, eps: float) -> float:
    """How many draws keep the error of every sum within a share ``eps`` of it."""
    needed = 3 * (6 + 2 * eps) * tilde / eps / eps
    return max(1.0, float(ceil(needed)) if needed < 1e15 else needed)


def bound(tilde: float, drawn: float) -> float:
    """The share within which so many draws keep the error of every sum: ``draws`` solved for ``eps``."""
    return (3 * tilde + sqrt(9 * tilde**2 + 18 * drawn * tilde)) / drawn


def distinct(p: Tensor, drawn: float) -> Tensor:
    """The probability (c) that a unit is among so many draws; their sum is the number of different ones to expect."""
    return torch.where(p > 0, -torch.expm1(drawn * torch.log1p(-p)), 0.0)


def reweighted(p: Tensor, drawn: Tensor, certain: Tensor) -> Tensor:
    """What the readers multiply each unit by (c), so that sums are right on average.

    ``drawn``: the numbers of units that were drawn with probabilities ``p``; those that are ``certain`` stay as they
    are, and the others are drawn among themselves.
    """
    rest = drawn[~certain[drawn]]
    counts = torch.bincount(rest, minlength=len(p)).to(p)
    among = torch.where(certain, 0.0, p)
    expected = len(rest) * among / among.sum().clamp(min=torch.finfo(p.dtype).tiny)
    return torch.where(certain, 1.0, counts / torch.where(expected > 0, expected, 1.0))


@selectors.register("sampling")
def sampling(question: Question, *, variant: Variant = "deterministic", delta: PositiveFloat = 1e-16) -> Decision:
    """The decision of the smallest common error within the limit. Scores below zero count as zero.

    Raises BudgetError where even single draws leave too much, DataError without a model.
    """
    gated = question.model("sampling")
    sampled = _sampled(question, gated, variant, delta)
    chosen = {name: float(each) for name, each in question.space.chosen(question.scores).items()}
    bits = {name: 1.0 for name, axis in question.space.alone.items() if axis.kind in BITS}

    def sizes(eps: float) -> dict[str, float]:
        return chosen | bits | {each.axis.name: float((each.factors(eps) > 0).sum()) for each in sampled}

    eps = common_error(sizes, question)
    factors = {each.axis.name: each.factors(eps) for each in sampled}
    kept = {name: factor.nonzero().flatten().tolist() for name, factor in factors.items()}
    arch = Arch(kept | {name: range(int(size)) for name, size in (chosen | bits).items()})
    edits = {} if variant == "deterministic" else _edits(gated, factors)
    drawn = {each.axis.name for each in sampled if each.variant != "deterministic"}
    return Decision(arch, edits, said(question, gated, Decision(arch, edits), dict.fromkeys(drawn, eps)))


def common_error(sizes: Callable[[float], dict[str, float]], question: Question) -> float:
    """The smallest error whose network is within the limit: cost falls in steps as the error grows."""
    low, high = LOWEST, HIGHEST
    if question.spent(sizes(low)) <= question.limit:
        return low
    if question.spent(sizes(high)) > question.limit:
        raise question.out_of_reach(sizes(high))
    for _ in range(HALVINGS):
        middle = exp(0.5 * (log(low) + log(high)))
        low, high = (low, middle) if question.spent(sizes(middle)) <= question.limit else (middle, high)
    return high


def _sampled(question: Question, gated: GatedModel, variant: Variant, delta: float) -> list[Sampled]:
    """What is sampled: all widths of the space."""
    space, of, generator = question.space, mixing(gated), question.generator()
    exact = finite({name: question.scores[name] for name in space.free})
    found = []
    for name, axis in space.alone.items():
        if axis.kind in BITS:
            continue
        s = exact[name].clamp(min=0)
        p = s / s.sum() if bool(s.any()) else torch.full_like(s, 1 / len(s))
        read_by = [each for each in of.values() if name in axes_of(gated, each.term)]
        logarithm = max((_logarithm(each, gated, delta) for each in read_by), default=1.0)
        tilde = 2 * C * max(float(s.sum()), LEAST) * logarithm
        own = variant if _reweightable(gated, name, of) else "deterministic"
        drawn = 1 if own == "deterministic" else LONGEST
        sequence = torch.multinomial(p, drawn, replacement=True, generator=generator)
        found.append(Sampled(axis, space.minimum[name], p, tilde, sequence, own))
    return found


def _logarithm(reader: Reader, gated: GatedModel, delta: float) -> float:
    """ln(8 (positions + 1) k^2 / delta) of a layer."""
    outputs = [int(size) for size in reader.site.node.meta["val"].shape]
    width, taps = len(weight_of(gated, reader)), weight_of(gated, reader)[0, 0].numel()
    positions = max(1, torch.Size(outputs[1:]).numel() // width)
    return log(8 * (positions + 1) * taps / delta)


def _reweightable(gated: GatedModel, name: str, of: Mapping[str, Reader]) -> bool:
    """Whether weights that sum over an axis are all that reads it."""
    sites = [site for site in gated.axes.walk.sites if name in axes_of(gated, site.term)]
    plain = {id(reader.site) for reader in of.values()}
    return bool(sites) and all(id(site) in plain for site in sites)


def _edits(gated: GatedModel, factors: Scores) -> dict[str, Tensor]:
    """Weights of all readers, the columns of what stays multiplied by its factors."""
    found = {}
    for reader in mixing(gated).values():
        if any(name in factors for name in axes_of(gated, reader.term)):
            weight = weight_of(gated, reader)
            kept = {name: torch.where(factor > 0, factor, 1.0) for name, factor in factors.items()}
            columns = gated.axes.mask(reader.term, kept).to(weight)
            found[reader.weight] = weight * columns.reshape(1, -1, *[1] * (weight.ndim - 2))
    return found
