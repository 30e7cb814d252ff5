"""What a stripe convolution is to compute: its pattern and its geometry, in plain numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Self

Pair = tuple[int, int]
Stripe = tuple[int, int, int]  # filter, row, column


@dataclass(frozen=True)
class KernelGrid:
    """Equally spaced positions along one dimension of a kernel."""

    start: int
    step: int
    count: int

    @classmethod
    def around(cls, positions: Iterable[int]) -> Self:
        """The smallest grid that holds all these positions."""
        known = sorted(set(positions))
        step = gcd(*(position - known[0] for position in known)) or 1
        return cls(known[0], step, (known[-1] - known[0]) // step + 1)

    @property
    def positions(self) -> range:
        """The positions that it holds."""
        return range(self.start, self.start + self.step * self.count, self.step)

    @property
    def last(self) -> int:
        """The last position that it holds."""
        return self.positions[-1]


@dataclass(frozen=True)
class StripePlan:
    """What a form is made from.

    ``alive``: per filter the positions of its kernel row by row, "1" live and "0" dead. ``padding``: top, bottom, left,
    right. All other pairs: height, width.
    """

    alive: Sequence[str]
    channels: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[int, int, int, int]

    @property
    def filters(self) -> int:
        """How many filters there are, the dead ones included."""
        return len(self.alive)

    def lives(self, stripe: Stripe) -> bool:
        """Whether a stripe is live."""
        n, i, j = stripe
        return self.alive[n][i * self.kernel[1] + j] == "1"

    def stripes(self, filters: Iterable[int]) -> list[Stripe]:
        """The live stripes of some filters, ordered by position, then by filter."""
        positions = [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]
        chosen = list(filters)
        return [(n, i, j) for i, j in positions for n in chosen if self.lives((n, i, j))]

    def crop(self, filters: Iterable[int]) -> tuple[KernelGrid, KernelGrid]:
        """Rows and columns without those that are dead in all of some filters; one position where all are dead."""
        stripes = self.stripes(filters) or [(0, 0, 0)]
        return KernelGrid.around(i for _, i, _ in stripes), KernelGrid.around(j for _, _, j in stripes)

    def pads(self, rows: KernelGrid, columns: KernelGrid) -> list[int]:
        """Padding of a crop as ``F.pad`` takes it: left, right, top, bottom; negative where it cuts the input."""
        top, bottom, left, right = self.padding
        (y, x), (height, width) = self.dilation, self.kernel
        return [
            left - columns.start * x,
            right - (width - 1 - columns.last) * x,
            top - rows.start * y,
            bottom - (height - 1 - rows.last) * y,
        ]

    def outputs(self, height: int, width: int) -> Pair:
        """Height and width of the output for an input of this height and width."""
        top, bottom, left, right = self.padding
        (y, x), (h, w) = self.dilation, self.kernel
        rows, columns = height + top + bottom - y * (h - 1), width + left + right - x * (w - 1)
        return (rows - 1) // self.stride[0] + 1, (columns - 1) // self.stride[1] + 1
