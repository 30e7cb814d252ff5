"""Cells: one method at one target with one seed, and the journal in which what came of each is kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nas_prune.base.errors import CheckpointError, RecipeError
from nas_prune.base.files.documents import Document, Natural, NotNegative, Positive, Text, read_journal
from nas_prune.base.files.whole import append_line
from nas_prune.run.promise import spread

DENSE = "dense"  # the method that prunes nothing
Status = Literal["met", "missed", "infeasible", "failed"]


@dataclass(frozen=True)
class Cell:
    """What is run once; the dense network has no target."""

    method: str
    target: str
    seed: int

    @property
    def folder(self) -> str:
        """Its run folder, beside the journal."""
        return "/".join(filter(None, ["runs", self.method, self.target, f"seed{self.seed}"]))

    def __str__(self) -> str:
        return f"{self.method}{f' at {self.target}' if self.target else ''}, seed {self.seed}"


class Row(Document):
    """What came of a cell. Costs are shares of the dense network's; ``derived`` and ``top1``: before fine-tuning and
    after; ``of_limit``: what it costs as a share of the budget's limit; ``spread``: of its timings, and of those of the
    dense network beside it, as a share of the median; ``dense_ms``: a call of that; ``seconds`` and epochs of training,
    those of the dense network that it began with included; ``scored``: seconds of scoring, choosing and making up for
    what goes, where they are not among those of training."""

    method: Text
    target: Text
    seed: Natural
    recipe: Text  # the SHA-256 of what was run
    status: Status
    message: Text = ""
    derived: NotNegative | None = None
    top1: NotNegative | None = None
    of_limit: Positive | None = None
    latency: Positive | None = None
    dense_ms: Positive | None = None
    spread: NotNegative = 0.0
    macs: Positive | None = None
    params: Positive | None = None
    scored: NotNegative = 0.0
    seconds: NotNegative = 0.0
    epochs: Natural = 0


class Journal:
    """The cells that have been run, in a file that grows by one line with each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [Row(**row) for row in read_journal(path, Row, CheckpointError)]

    def find(self, cell: Cell) -> Row | None:
        """What came of a cell; the latest, if it was tried again."""
        same = [row for row in self.rows if (row.method, row.target, row.seed) == (cell.method, cell.target, cell.seed)]
        return same[-1] if same else None

    def done(self, cell: Cell, recipe: str, *, again: bool = False) -> bool:
        """Whether a cell has been run; ``again``: one that failed has not. RecipeError if it was of another recipe."""
        row = self.find(cell)
        if row is None or (again and row.status == "failed"):
            return False
        if row.recipe != recipe:
            raise RecipeError(
                f"{self.path} holds {cell} of another recipe, method or number of epochs, or a file that the recipe "
                "names has changed since; choose another --out, or take back the change"
            )
        return True

    def add(self, row: Row) -> None:
        """Keep what came of a cell, on the disk when this returns."""
        append_line(self.path, row.model_dump())
        self.rows.append(row)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of each cell the last row, in the order in which cells were first run."""
    return list({(row.method, row.target, row.seed): row for row in rows}.values())


def figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row, from the results of a run."""
    tuned, dense, budget = results["finetuned"], results["dense"], results["budget"]
    return {
        "of_limit": budget["reached"] / budget["limit"],
        "dense_ms": dense["measured_ms"],
        "derived": results["derived"]["top1"],
        "top1": tuned["top1"],
        "latency": tuned["measured_share"],
        "spread": max(spread(tuned), spread(dense)),
        "macs": tuned["macs"] / dense["macs"],
        "params": tuned["params"] / dense["params"],
    }
