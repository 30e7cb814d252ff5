"""Supports: which taps of a k x k kernel live, and how few small dense kernels compute them.

A support is a name (``full``, ``centre``, ``plus``, ``corners``, ``checkerboard``, ``row_1``, ``column_0``) or a list
of [row, column]. A ``Grid`` is a support that is one ordinary, possibly dilated, smaller kernel; every support is a sum
of disjoint grids.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from nas_prune.base.errors import SpaceError

Taps = frozenset[tuple[int, int]]
Steps = range  # evenly spaced rows or columns
TapGrid = tuple[Steps, Steps]


def taps(support: str | Sequence[Sequence[int]], kernel: int) -> Taps:
    """The living (row, column) of a support. Raises SpaceError where there is no such support, or nothing lives."""
    if not isinstance(support, str):
        found = {(int(row), int(column)) for row, column in support}
    else:
        name, _, number = support.partition("_")
        found = {tap for tap in product(range(kernel), range(kernel)) if _lives(name, number, tap, kernel)}
    if not found or not all(0 <= each < kernel for tap in found for each in tap):
        raise SpaceError(
            f"no support {support!r} in a {kernel}x{kernel} kernel; there is: full, centre, plus, corners, "
            f"checkerboard, row_0 .. row_{kernel - 1}, column_0 .. column_{kernel - 1}, or a list of [row, column]"
        )
    return frozenset(found)


def grids(living: Taps) -> list[TapGrid]:
    """Disjoint grids that make up a support, the largest first."""
    found, left = list[TapGrid](), set(living)
    while left:
        rows, columns = sorted({row for row, _ in left}), sorted({column for _, column in left})
        inside = (grid for grid in product(_even(rows), _even(columns)) if left.issuperset(product(*grid)))
        best = max(inside, key=lambda grid: len(grid[0]) * len(grid[1]))
        found.append(best)
        left -= set(product(*best))
    return found


def _lives(name: str, number: str, tap: tuple[int, int], kernel: int) -> bool:
    middle, last = kernel // 2, kernel - 1
    row, column = tap
    if name in ("row", "column"):
        return number.isdecimal() and tap[name == "column"] == int(number)
    named = {
        "full": True,
        "centre": row == column == middle,
        "plus": middle in tap,
        "corners": row in (0, last) and column in (0, last),
        "checkerboard": (row + column) % 2 == 0,
    }
    return not number and named.get(name, False)


def _even(among: Sequence[int]) -> Iterator[Steps]:
    """Every evenly spaced run of numbers, all of them among those given."""
    for first, last in product(among, repeat=2):
        for step in range(1, max(1, last - first) + 1):
            run = range(first, last + 1, step)
            if run and run[-1] == last and set(run) <= set(among):
                yield run
