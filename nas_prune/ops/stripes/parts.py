"""Parts of a stripe convolution: each turns the input (b c h w) into maps (b l h w), of which each owns a filter.

The 1x1 convolutions of single stripes compute nothing that is dead. ``Shifted`` is the inference of arXiv 2009.14410,
but for strides: the paper's code computes all positions and throws most of them away; here each phase of the stride is
taken from the input first.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from nas_prune.ops.stripes.plan import KernelGrid, Pair, Stripe, StripePlan


class Window(nn.Module):
    """An ordinary convolution: some filters on some rows and columns. One map per filter."""

    live: Tensor

    def __init__(self, plan: StripePlan, filters: Sequence[int], crop: tuple[KernelGrid, KernelGrid]) -> None:
        super().__init__()
        rows, columns = self._crop = crop
        self.owners = list(filters)
        self._pads, self._stride = plan.pads(rows, columns), plan.stride
        self._dilation = (plan.dilation[0] * rows.step, plan.dilation[1] * columns.step)
        live = [[[plan.lives((n, i, j)) for j in columns.positions] for i in rows.positions] for n in filters]
        self.register_buffer("live", torch.tensor(live), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(live), plan.channels, rows.count, columns.count))

    def taken(self, weight: Tensor) -> Tensor:
        """Its weight (m c i j) from that of all filters (n c i j)."""
        rows, columns = (torch.tensor(grid.positions) for grid in self._crop)
        mine = weight[torch.tensor(self.owners)][:, :, rows][:, :, :, columns]
        return mine.where(rearrange(self.live, "m i j -> m 1 i j"), 0)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(b c h w) -> (b m h w)."""
        weight: Tensor = self.weight
        if torch.is_grad_enabled() and weight.requires_grad:  # dead stripes are zeros, and get no gradient
            weight = weight.where(rearrange(self.live, "m i j -> m 1 i j"), 0)
        left, right, top, bottom = self._pads
        if left == right >= 0 and top == bottom >= 0:
            return F.conv2d(x, weight, bias, self._stride, (top, left), self._dilation)
        return F.conv2d(F.pad(x, self._pads), weight, bias, self._stride, 0, self._dilation)


class StripeMaps(nn.Module):
    """1x1 convolutions of live stripes, one map per stripe. A subclass says how maps come to their places."""

    def __init__(self, plan: StripePlan) -> None:
        super().__init__()
        self._plan, (rows, columns) = plan, plan.crop(range(plan.filters))
        self._pads, self._start = plan.pads(rows, columns), (rows.start, columns.start)
        self._span = (rows.last - rows.start) * plan.dilation[0], (columns.last - columns.start) * plan.dilation[1]
        stripes = sorted(plan.stripes(range(plan.filters)), key=lambda s: (self._phase(s), self._offset(s)))
        self._phases = [
            (phase, [(offset, len(list(run))) for offset, run in groupby(group, self._offset)])
            for phase, group in groupby(stripes, self._phase)
        ]
        self.owners = [n for n, _, _ in stripes]
        self._stripes = stripes
        self.weight = nn.Parameter(torch.zeros(len(stripes), plan.channels))

    def taken(self, weight: Tensor) -> Tensor:
        """Its weight (l c) from that of all filters (n c i j)."""
        n, i, j = torch.tensor(self._stripes).unbind(1)
        return weight[n, :, i, j]

    def _offset(self, stripe: Stripe) -> Pair:
        """Rows and columns from the start of the padded input to the first one that a stripe sees."""
        _, i, j = stripe
        return (i - self._start[0]) * self._plan.dilation[0], (j - self._start[1]) * self._plan.dilation[1]

    def _phase(self, stripe: Stripe) -> Pair:
        """Which of the strided inputs a stripe sees."""
        (y, x), (down, right) = self._offset(stripe), self._plan.stride
        return y % down, x % right

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self._pads) if any(self._pads) else x

    def _convolved(self, x: Tensor, first: int, count: int) -> Tensor:
        """(b c h w) -> (b m h w): the stripes from ``first`` on."""
        return F.conv2d(x, rearrange(self.weight[first : first + count], "m c -> m c 1 1"))


class Gathered(StripeMaps):
    """Position by position: shift and stride the input, then convolve."""

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b l h w)."""
        padded, maps, first = self._padded(x), list[Tensor](), 0
        (down, right), (rows, columns) = self._plan.stride, self._span
        for (y, z), count in (run for _, runs in self._phases for run in runs):
            seen = padded[:, :, y : y - rows or None : down, z : z - columns or None : right]
            maps.append(self._convolved(seen, first, count))
            first += count
        return torch.cat(maps, 1)


class Shifted(StripeMaps):
    """Phase by phase of the stride: convolve the whole input, then shift the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b l h w)."""
        padded, maps, first = self._padded(x), list[Tensor](), 0
        (down, right), (height, width) = self._plan.stride, self._plan.outputs(x.shape[2], x.shape[3])
        for (top, left), runs in self._phases:
            total, place = sum(count for _, count in runs), 0
            output = self._convolved(padded[:, :, top::down, left::right], first, total)
            for offset, count in runs:
                y, z = offset[0] // down, offset[1] // right
                maps.append(output[:, place : place + count, y : y + height, z : z + width])
                place += count
            first += total
        return torch.cat(maps, 1)


class Collect(nn.Module):
    """The sum of the maps of each filter, (b l h w) -> (b n h w): filters with equally many maps are added at once.

    ``owners``: the filter of each map. A filter without a map is zero.
    """

    maps: Tensor
    filters: Tensor

    def __init__(self, owners: Sequence[int], filters: int) -> None:
        super().__init__()
        mine: list[list[int]] = [[] for _ in range(filters)]
        for place, owner in enumerate(owners):
            mine[owner].append(place)
        order = sorted(range(filters), key=lambda n: len(mine[n]))
        self._groups = [(count, len(list(run))) for count, run in groupby(order, lambda n: len(mine[n]))]
        self.register_buffer("maps", torch.tensor([place for n in order for place in mine[n]]), persistent=False)
        places = sorted(range(filters), key=order.__getitem__)
        self.register_buffer("filters", torch.tensor(places), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(b l h w) -> (b n h w)."""
        gathered, sums, first = maps.index_select(1, self.maps), list[Tensor](), 0
        for count, filters in self._groups:
            part = gathered[:, first : first + count * filters]
            if count == 0:
                sums.append(torch.zeros_like(maps[:, :1]).expand(-1, filters, -1, -1))
            else:
                sums.append(part if count == 1 else reduce(part, "b (m t) h w -> b m h w", "sum", t=count))
            first += count * filters
        return torch.cat(sums, 1).index_select(1, self.filters)
