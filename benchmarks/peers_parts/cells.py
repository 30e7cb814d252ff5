"""Cells: one method on one backbone at one target with one seed, and the file in which the results of each are kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import Document, NotNegative, Text, read_journal
from nas_prune.base.files.whole import append_line

SETTINGS, COSTS = ("scratch", "tuned", "untouched"), ("macs", "latency")


@dataclass(frozen=True)
class Cell:
    """What is run once. ``target`` is a share of the dense network's ``cost``, as ``0.25x``."""

    setting: str
    backbone: str
    cost: str
    target: str
    seed: int
    method: str

    @property
    def share(self) -> float:
        """The target as a number."""
        return float(self.target.removesuffix("x"))

    def __str__(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())


class Row(Document):
    """A line of cells.jsonl: the cell, and what came of it: the figures, or why there are none."""

    setting: Literal["scratch", "tuned", "untouched"]
    backbone: Text
    cost: Literal["macs", "latency"]
    target: Text
    seed: int
    method: Text
    took: NotNegative  # seconds of the whole cell, timing and evaluation included
    failed: Text | None = None
    top1: NotNegative | None = None
    macs: NotNegative | None = None  # this and the next two are shares of the dense network's
    onnxruntime: NotNegative | None = None
    eager: NotNegative | None = None
    seconds: NotNegative | None = None  # of training
    epochs: int | None = None
    timed_alone: bool = False  # afterwards, when nothing else ran on the machine


class Results:
    """The cells that have been run, in a file that grows by one line with each; of a cell, the last line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = {cell_of(row): row for row in read_journal(path, Row, CheckpointError)}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines that count, in the order in which cells were first run."""
        return list(self._rows.values())

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """What came of a cell."""
        return self._rows.get(cell)

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keep what came of a cell, on the disk when this returns."""
        self._rows[cell] = {**asdict(cell), **found}
        append_line(self.path, self._rows[cell])

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that have not been run yet, in the same order."""
        return [cell for cell in cells if cell not in self._rows]

    def minutes(self, cells: Sequence[Cell]) -> float | None:
        """About how long cells will take, from those that were run; None where none was."""
        if not self.rows:
            return None
        return sum(self._seconds(cell) for cell in cells) / 60

    def _seconds(self, cell: Cell) -> float:
        """Of the cells that were run, the median of those that are most like this one."""
        alike: Iterator[list[dict[str, Any]]] = (
            [row for row in self.rows if all(row[name] == getattr(cell, name) for name in names)]
            for names in (("setting", "backbone", "method"), ("setting", "backbone"), ("backbone",), ())
        )
        return float(median(row["took"] for row in next(filter(None, alike))))


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell of a line of the results."""
    return Cell(**{field.name: row[field.name] for field in fields(Cell)})


def cells_of(asked: Sequence[Sequence[Any]]) -> list[Cell]:
    """Every combination of settings, backbones, costs, targets, seeds and methods, in this order."""
    return [Cell(*values) for values in product(*asked)]
