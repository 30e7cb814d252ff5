"""The table: results of cells, put together over seeds, in Markdown between two marks of a page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from nas_prune.base.errors import NasPruneError
from nas_prune.base.files.whole import atomic_write
from nas_prune.run.compare.sections import spread

from .cells import Cell, cell_of

BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
# the best one of a table is what all are put beside
CONTROLS = ("uniform", "uniform_fours", "uniform_single", "uniform_distilled")
GROUP = ("setting", "backbone", "cost", "target")
HEAD = (
    "| method | top-1, % | beside uniform | MACs | ONNX Runtime | eager | training, CPU s | epochs | seeds |",
    "|---|---|---|---|---|---|---|---|---|",
)
Row = Mapping[str, Any]


class Known(Protocol):
    """A method, as far as a table asks."""

    def has(self, cell: Cell) -> bool:
        """Whether the method has a meaning in a cell."""


def write_tables(page: Path, rows: Sequence[Row], methods: Mapping[str, Known]) -> None:
    """Put the tables between the marks of a page. Raises NasPruneError where it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NasPruneError(f"{page} has no place for the tables; write {BEGIN} and {END} where they are to stand")
    atomic_write(page, f"{before}{BEGIN}\n{tables(rows, methods)}\n{END}{after}")


def tables(rows: Sequence[Row], methods: Mapping[str, Known]) -> str:
    """A table for each setting, backbone, cost and target, and what is missing below it."""
    ordered = sorted(rows, key=_group)
    parts = [_section(key, list(group), methods) for key, group in groupby(ordered, _group)]
    return "\n".join(["", *parts]) if parts else "\nNothing has been run yet.\n"


def _group(row: Row) -> tuple[Any, ...]:
    return tuple(-float(row[name][:-1]) if name == "target" else row[name] for name in GROUP)


def _section(key: tuple[Any, ...], rows: list[Row], methods: Mapping[str, Known]) -> str:
    setting, backbone, cost, target = key
    seeds = sorted({row["seed"] for row in rows})
    made = {name: [row for row in rows if row["method"] == name and row["top1"] is not None] for name in methods}
    made = {name: own for name, own in made.items() if own}
    best_first = sorted(made, key=lambda name: -mean(row["top1"] for row in made[name]))
    control = next((name for name in best_first if name in CONTROLS), "")
    beside = {row["seed"]: row["top1"] for row in made.get(control, [])}
    title = f"**{setting}, {backbone}, {-target:g}x of the {'MACs' if cost == 'macs' else 'latency'}**"
    lines = [_line(name, made[name], {} if name == control else beside, len(seeds)) for name in best_first]
    return "\n".join([title, "", *HEAD, *lines, "", *_missing(rows, methods), ""])


def _line(name: str, rows: list[Row], control: Mapping[int, float], seeds: int) -> str:
    """A method's row: means over its seeds. ``control``: what it is put beside, by seed."""
    doubt = "" if all(row.get("timed_alone") for row in rows) else "?"
    shares = [f"{mean(row[cost] for row in rows):.3f}" for cost in ("macs", "onnxruntime", "eager")]
    shares = [shares[0], *(f"{share}{doubt}" for share in shares[1:])]
    paired = [row["top1"] - control[row["seed"]] for row in rows if row["seed"] in control]
    beside = spread(paired, sign="+") if paired else ""
    spent, epochs = f"{mean(row['seconds'] for row in rows):.0f}", f"{rows[0]['epochs']}"
    ran = f"{len(rows)}" if len(rows) == seeds else f"{len(rows)} of {seeds}"
    return f"| {' | '.join([name, spread([row['top1'] for row in rows]), beside, *shares, spent, epochs, ran])} |"


def _missing(rows: list[Row], methods: Mapping[str, Known]) -> Iterator[str]:
    """Which methods have not been run, and which came to no result, with the reason."""
    here, tried = cell_of(rows[0]), {row["method"] for row in rows}
    absent = [name for name, method in methods.items() if name not in tried and method.has(here)]
    if absent:
        yield f"Not run: {len(absent)} of {len(absent) + len(tried)} methods."
    for row in rows:
        if row["failed"] is not None:
            yield f"No result of {row['method']}, seed {row['seed']}: {row['failed']}."
