"""Which sub-networks a calibration times: corners, uneven networks of every size, and pairs of widths (ours).

Independent ratios per axis would all be near the middle, so a global ratio comes first and each axis deviates from it.
The time of an operator depends on the widths that it reads and writes together: every fourth sub-network sets two axes
that meet in one operator to a point of a grid, whatever the rest is. A branch stays as often as the ratio says; of a
choice one candidate stays, any of them.
"""

import torch

from nas_prune.base.axis import BITS, Axis
from nas_prune.costs import CostModel, Macs
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch, allowed_width
from nas_prune.tracing.space import SearchSpace
from nas_prune.tracing.terms import leaves
from nas_prune.train.data.order import seeded

CORNERS = {0: 0.0, 1: 0.5, 2: 0.95}  # the smallest, the half, and nearly the dense network
GRID = (0.0, 0.33, 0.67, 1.0)


def sample(space: SearchSpace, index: int, *, seed: int, jitter: float) -> Arch:
    """Sub-network number ``index``; it depends on nothing else.

    The spread of the deviations differs from sample to sample, 0 to twice ``jitter``: a search ends at uneven widths.
    """
    generator = seeded(seed, index)
    ratio = CORNERS.get(index, float(torch.rand((), generator=generator)))
    spread = 0.0 if index in CORNERS else 2 * jitter * float(torch.rand((), generator=generator))
    shares = {name: ratio + spread * float(torch.randn((), generator=generator)) for name in space.free}
    pairs = meeting(space.axes) if index not in CORNERS and index % 4 == 3 else []
    for name in pairs[int(torch.randint(len(pairs), (), generator=generator))] if pairs else ():
        shares[name] = GRID[int(torch.randint(len(GRID), (), generator=generator))]
    for name in (name for name, axis in space.free.items() if axis.kind in BITS):
        shares[name] = float(index == 2 or float(torch.rand((), generator=generator)) < ratio)
    if index == 0:
        return smallest(space)
    kept = {name: range(_width(axis, space.minimum[name], shares[name])) for name, axis in space.free.items()}
    for names in space.choices.values():
        one = names[int(torch.randint(len(names), (), generator=generator))]
        kept |= {name: range(int(name == one)) for name in names}
    return Arch(kept)


def smallest(space: SearchSpace, cost: CostModel | None = None) -> Arch:
    """Every axis at its least width, of every choice the candidate that costs least, by default in MACs."""
    kept = {name: range(space.minimum[name]) for name in space.free}
    counted = cost or Macs(space.axes)
    return Arch(kept | {_cheapest(counted, names): range(1) for names in space.choices.values()})


def _cheapest(cost: CostModel, names: tuple[str, ...]) -> str:
    """The candidate of a choice that costs least, everything else being dense."""
    return min(names, key=lambda one: float(cost({name: float(name == one) for name in names})))


def meeting(axes: Axes) -> list[tuple[str, ...]]:
    """Pairs of free axes that meet in an operator."""
    found: dict[tuple[str, ...], None] = {}
    for products in axes.walk.products.values():
        for terms in products:
            names = sorted({axes.variables[var] for term in terms for var in leaves(term) if var in axes.variables})
            free = [name for name in names if name in axes.free and axes[name].kind not in BITS]
            found |= {(one, other): None for i, one in enumerate(free) for other in free[i + 1 :]}
    return list(found)


def _width(axis: Axis, minimum: int, share: float) -> int:
    """The allowed width at a share of the way from the least to the full size."""
    least = minimum / axis.size
    width = allowed_width(axis, axis.size * (least + (1 - least) * min(1.0, max(0.0, share))))
    return max(minimum, width)
