"""A comparison as tables and as a chart: means over seeds, their spread, and every method beside the best control."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nas_prune.base.files.whole import atomic_write
from nas_prune.run.compare.cells import DENSE, Row
from nas_prune.run.compare.methods import Method
from nas_prune.run.promise import DISTURBED
from nas_prune.run.report.curves import Ink, blank, legend, style, svg
from nas_prune.run.report.targets import alone
from nas_prune.run.report.terminal import terminal_table, texts

NARROW = ("method", "top-1, %", "to control", "latency", "MACs")  # what fits a terminal
COLUMNS = ("method", "as derived, %", "top-1, %", "to control", "latency", "MACs", "training, s", "epochs", "seeds")


@dataclass(frozen=True)
class Section:
    """One target: the rows of each method that came to a result, the best one first, and the best control."""

    target: str
    made: Mapping[str, Sequence[Row]]
    control: str
    seeds: int
    lost: Sequence[Row]
    costly: Mapping[str, float]

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{self.target} of the dense network"

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table, method by method."""
        beside = {row.seed: row.top1 for row in self.made.get(self.control, ())}
        for name, rows in self.made.items():
            paired = [row.top1 - beside[row.seed] for row in rows if row.seed in beside]  # type: ignore[operator]
            more = spread(paired, sign="+") if paired and name != self.control else ""
            shares = [_share(getattr(row, cost) for row in rows) for cost in ("latency", "macs")]
            ran = f"{len(rows)}" if len(rows) == self.seeds else f"{len(rows)} of {self.seeds}"
            accuracies = [spread([float(getattr(row, key) or 0) for row in rows]) for key in ("derived", "top1")]
            spent = f"{mean(row.seconds for row in rows):.0f}"
            yield (name, *accuracies, more, *shares, spent, f"{mean(row.epochs for row in rows):.3g}", ran)

    def remarks(self) -> Iterator[str]:
        """Searches that took longer than controls were allowed, disturbed timings, and cells that failed."""
        for name, epochs in self.costly.items():
            yield f"Searching with {name} took as long as {epochs:.1f} dense epochs, more than controls have."
        disturbed = [name for name, rows in self.made.items() if any(row.spread > DISTURBED for row in rows)]
        if disturbed:
            names = ", ".join(disturbed)
            yield f"The machine was disturbed while these were timed, whose latencies may be wrong: {names}."
        for row in self.lost:
            yield f"No result of {row.method}, seed {row.seed}: {row.message or row.status}"


def sections(rows: Sequence[Row], methods: Mapping[str, Method], allowance: int) -> list[Section]:
    """A section for each target, in the order in which they were run; the dense network is in all of them.

    ``allowance``: epochs that controls had more.
    """
    found, dense = [], [row for row in rows if row.method == DENSE]
    for target in dict.fromkeys(row.target for row in rows if row.target):
        here = [*(row for row in rows if row.target == target), *dense]
        made: dict[str, list[Row]] = {}
        for row in here:
            if row.top1 is not None:
                made.setdefault(row.method, []).append(row)
        best_first = sorted(made, key=lambda name: -mean(float(row.top1 or 0) for row in made[name]))
        controls = [name for name in best_first if name in methods and methods[name].control]
        seeds = len({row.seed for row in here})
        lost = [row for row in here if row.top1 is None]
        ordered, costly = {name: made[name] for name in best_first}, _costly(made, allowance)
        found.append(Section(target, ordered, next(iter(controls), ""), seeds, lost, costly))
    return found


def _costly(made: Mapping[str, Sequence[Row]], allowance: int) -> dict[str, float]:
    """Methods whose search took longer than so many epochs of the dense network, and how many it took."""
    dense = [row.seconds / row.epochs for row in made.get(DENSE, ()) if row.epochs and row.seconds]
    if not dense:
        return {}
    took = {name: mean(row.searched for row in rows) / mean(dense) for name, rows in made.items()}
    return {name: epochs for name, epochs in took.items() if epochs > allowance}


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    around = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{around}"


def tables(found: Sequence[Section]) -> Iterator[Any]:
    """A table for the terminal per target; the page has more columns."""
    for section in found:
        printed = terminal_table("method", *(f"#{name}" for name in NARROW[1:]), title=section.title)
        for line in section.lines():
            cells = dict(zip(COLUMNS, line, strict=True))
            printed.add_row(*texts(*(cells[name] for name in NARROW)))
        printed.caption = "\n".join(section.remarks()) or None
        yield printed


def save(found: Sequence[Section], methods: Mapping[str, Method], out: Path, command: str) -> list[Path]:
    """comparison.md, and comparison.svg, if there is anything to draw; the files that were written."""
    drawing, written = chart(found, methods), [out / "comparison.md"]
    atomic_write(written[0], markdown(found, methods, command, charted=drawing is not None))
    if drawing is not None:
        written.append(out / "comparison.svg")
        atomic_write(written[1], alone(drawing))
    return written


def markdown(found: Sequence[Section], methods: Mapping[str, Method], command: str, *, charted: bool = False) -> str:
    """The whole as a page: how it was made, a table per target, and what each method is."""
    parts = ["# Methods side by side", f"Made by\n\n    {command}", ABOUT]
    parts += ["![top-1 against measured latency](comparison.svg)"] if charted else []
    for section in found:
        lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(line)} |" for line in section.lines()]
        parts += [f"## {section.title}", "\n".join(lines), *section.remarks()]
    shown = dict.fromkeys(name for section in found for name in section.made if name in methods)
    about = [f"* `{name}`{' (control)' if methods[name].control else ''}: {methods[name].about}" for name in shown]
    return "\n\n".join([*parts, "## Methods", "\n".join(about), ""])


ABOUT = """Accuracy is that of held-out images, mean ± standard deviation over seeds; *as derived* before fine-tuning;
*to control* the mean difference, seed by seed, to the best control of the table; latency as measured, MACs as
counted, both as shares of the dense network's; training and epochs with those of the dense network that a method begins
with."""


def chart(found: Sequence[Section], methods: Mapping[str, Method]) -> str | None:
    """Top-1 against measured latency, a point per method and target; None where nothing was timed."""
    points = [(name, section.target, rows) for section in found for name, rows in section.made.items()]
    points = [
        (name, target, rows) for name, target, rows in points if name != DENSE and all(row.latency for row in rows)
    ]
    if not points:
        return None
    with style():
        figure, axes = blank("top-1, %", "measured latency, share of the dense network's", height=4.2)
        for control, ink in ((False, Ink.SEARCH), (True, Ink.DENSE)):
            own = [each for each in points if methods[each[0]].control == control]
            xs = [mean(float(row.latency or 0) for row in rows) for _, _, rows in own]
            ys = [mean(float(row.top1 or 0) for row in rows) for _, _, rows in own]
            axes.scatter(xs, ys, s=36, color=ink.value, zorder=3, label="controls" if control else "methods")
            for (name, _, _), x, y in zip(own, xs, ys, strict=True):
                text = axes.annotate(name, (x, y), (0, 6), textcoords="offset points", ha="center")
                text.set(color=Ink.TEXT.value, fontsize=8, parse_math=False)
        axes.set_position((0.12, 0.13, 0.86, 0.78))
        axes.margins(x=0.14, y=0.14)
        legend(axes)
        return svg(figure, "top-1 against measured latency, one point per method and target")


def _share(values: Iterable[float | None]) -> str:
    """The mean of shares; a dash where one is not known."""
    known = list(values)
    return f"{mean(value for value in known if value):.3f}x" if all(known) else "—"
