"""Fisher's optimal partition: a row of numbers cut into segments within which they differ least (W. D. Fisher, 1958).

Of segments [a, b) the cost is D(a, b) = sum (A_i - mean)^2, and by dynamic programming the least cost of n numbers in k
segments is L(n, 1) = D(0, n), L(n, k) = min over j of L(j, k - 1) + D(j, n).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


@dataclass(frozen=True)
class Partition:
    """``cost``: what the numbers differ by within their segments; ``starts``: where these begin, the first at 0."""

    cost: float
    starts: tuple[int, ...]

    def segments(self, count: int) -> list[range]:
        """The segments of a row of so many numbers."""
        return [range(*ends) for ends in zip(self.starts, (*self.starts[1:], count), strict=True)]


def partitions(values: Sequence[float]) -> list[Partition]:
    """The best partition into 1, 2, ... segments, up to one for each number. Of several, the one that cuts first."""
    count = len(values)
    apart = [[_spread(values[first:end]) for end in range(count + 1)] for first in range(count)]
    best = [Partition(apart[0][end], (0,)) for end in range(count + 1)]  # of the first numbers, so many
    found = [best[count]]
    for k in range(2, count + 1):
        longer = best[:k]  # fewer than k numbers have no k segments; nobody looks at them again
        for end in range(k, count + 1):
            tried = [Partition(best[cut].cost + apart[cut][end], (*best[cut].starts, cut)) for cut in range(k - 1, end)]
            longer.append(min(tried, key=lambda each: each.cost))
        best = longer
        found.append(best[count])
    return found


def enough(found: Sequence[Partition], gain: float) -> int:
    """How many segments: the most of which the last takes away more than a share ``gain`` of what one costs."""
    least = gain * found[0].cost
    drops = [before.cost - after.cost for before, after in pairwise(found)]
    return 1 + max((k for k, drop in enumerate(drops, 1) if drop > least), default=0)


def _spread(values: Sequence[float]) -> float:
    """D: the sum of squared distances from the mean."""
    if not values:
        return 0.0
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)
