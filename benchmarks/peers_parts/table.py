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
# The best one of a table is what all are put beside.
CONTROLS = ("uniform", "uniform_fours", "uniform_single", "uniform_distilled")
OURS = {"scratch": "once_hard_concrete", "tuned": "taylor_features", "untouched": "taylor_compensated"}
OTHERS = ("tp_", "torch_dag")  # how the names of other packages' methods begin
GROUP = ("setting", "backbone", "cost", "target")
SHORT = (
    "| setting | network | target | ours | the best uniform one | the best of other packages | ours beside uniform |",
    "|---|---|---|---|---|---|---|",
)
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
    """A short one over all; then one for each setting, backbone, cost and target, and what is missing below it."""
    groups = {key: list(group) for key, group in groupby(sorted(rows, key=_group), _group)}
    if not groups:
        return "\nNothing has been run yet.\n"
    made = {key: made_by(group) for key, group in groups.items()}
    parts = [_section(key, group, made[key], methods) for key, group in groups.items()]
    return "\n".join(["", *SHORT, *(_summary(key, own) for key, own in made.items()), "", *parts])


def _group(row: Row) -> tuple[Any, ...]:
    return tuple(-float(row[name][:-1]) if name == "target" else row[name] for name in GROUP)


def made_by(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each method that came to a result, the most accurate method first."""
    made: dict[str, list[Row]] = {}
    for row in rows:
        if row["top1"] is not None:
            made.setdefault(row["method"], []).append(row)
    return dict(sorted(made.items(), key=lambda item: -mean(row["top1"] for row in item[1])))


def _control(made: Mapping[str, list[Row]]) -> str:
    """The best uniform network; empty where none was run."""
    return _best({name: own for name, own in made.items() if name in CONTROLS})


def _best(made: Mapping[str, list[Row]]) -> str:
    """Of the methods with most seeds the most accurate one; empty where there is none."""
    return max(made, key=lambda name: len(made[name]), default="")


def _beside(rows: Sequence[Row], control: Sequence[Row]) -> str:
    """The difference to a control, seed by seed; empty where they share none."""
    known = {row["seed"]: row["top1"] for row in control}
    paired = [row["top1"] - known[row["seed"]] for row in rows if row["seed"] in known]
    return spread(paired, sign="+") if paired else ""


def _target(key: tuple[Any, ...]) -> str:
    _, _, cost, target = key
    return f"{-target:g}x of the {'MACs' if cost == 'macs' else 'latency'}"


def _summary(key: tuple[Any, ...], made: Mapping[str, list[Row]]) -> str:
    """A line of the short table: our method for the setting, the best control, the best of other packages."""
    others = {name: own for name, own in made.items() if name.startswith(OTHERS)}
    names = (OURS[key[0]], _control(made), _best(others))
    told = [f"{spread([row['top1'] for row in made[name]])} (`{name}`)" if name in made else "—" for name in names]
    more = _beside(made.get(names[0], ()), made.get(names[1], ()))
    return f"| {' | '.join([*key[:2], _target(key), *told, more or '—'])} |"


def _section(key: tuple[Any, ...], rows: list[Row], made: Mapping[str, list[Row]], methods: Mapping[str, Known]) -> str:
    """All that was run, the best one first."""
    control, seeds = _control(made), len({row["seed"] for row in rows})
    lines = [_line(name, own, () if name == control else made.get(control, ()), seeds) for name, own in made.items()]
    title = f"**{', '.join([*key[:2], _target(key)])}**"
    return "\n".join([title, "", *HEAD, *lines, "", *_missing(rows, methods), ""])


def _line(name: str, rows: Sequence[Row], control: Sequence[Row], seeds: int) -> str:
    """A method's row: means over its seeds. ``control``: what it is put beside."""
    doubt = "" if all(row.get("timed_alone") for row in rows) else "?"
    shares = [f"{mean(row[cost] for row in rows):.3f}" for cost in ("macs", "onnxruntime", "eager")]
    shares = [shares[0], *(f"{share}{doubt}" for share in shares[1:])]
    spent, epochs = f"{mean(row['seconds'] for row in rows):.0f}", f"{rows[0]['epochs']}"
    ran = f"{len(rows)}" if len(rows) == seeds else f"{len(rows)} of {seeds}"
    accuracy = spread([row["top1"] for row in rows])
    return f"| {' | '.join([name, accuracy, _beside(rows, control), *shares, spent, epochs, ran])} |"


def _missing(rows: list[Row], methods: Mapping[str, Known]) -> Iterator[str]:
    """Which methods have not been run, and which came to no result, with the reason."""
    here, tried = cell_of(rows[0]), {row["method"] for row in rows}
    absent = [name for name, method in methods.items() if name not in tried and method.has(here)]
    if absent:
        yield f"Not run: {len(absent)} of {len(absent) + len(tried)} methods."
    for row in rows:
        if row["failed"] is not None:
            yield f"No result of {row['method']}, seed {row['seed']}: {row['failed']}."
