"""A comparison to read: tables for the terminal, and a page with all figures, a chart, and how they were made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from nas_prune.base.files.whole import atomic_write
from nas_prune.base.fingerprint import fingerprint
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.compare.chart import chart
from nas_prune.run.compare.plan import Plan
from nas_prune.run.compare.sections import COLUMNS, Section
from nas_prune.run.report.targets import alone
from nas_prune.run.report.terminal import terminal_table, texts

NARROW = ("method", "top-1, %", "to control", "of limit", "latency", "MACs")  # what fits a terminal


def tables(found: Sequence[Section]) -> Iterator[Any]:
    """A table for the terminal per target; the page has more columns."""
    for section in found:
        printed = terminal_table("method", *(f"#{name}" for name in NARROW[1:]), title=section.title)
        for line in section.lines():
            cells = dict(zip(COLUMNS, line, strict=True))
            printed.add_row(*texts(*(cells[name] for name in NARROW)))
        printed.caption = "\n".join(section.remarks()) or None
        yield printed


def save(found: Sequence[Section], plan: Plan, command: str) -> list[Path]:
    """comparison.md, and comparison.svg, if there is anything to draw; the files that were written."""
    drawing, written = chart(found), [plan.out / "comparison.md"]
    atomic_write(written[0], markdown(found, plan, command, charted=drawing is not None))
    picture = plan.out / "comparison.svg"
    if drawing is None:
        picture.unlink(missing_ok=True)
    else:
        written.append(picture)
        atomic_write(picture, alone(drawing))
    return written


def markdown(found: Sequence[Section], plan: Plan, command: str, *, charted: bool = False) -> str:
    """The whole as a page: how it was made, a table per target, and what each method is."""
    parts = ["# Methods side by side", f"Made by\n\n    {command}", ABOUT, _settings(plan, found)]
    parts += ["![top-1 of every method](comparison.svg)"] if charted else []
    for section in found:
        lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(line)} |" for line in section.lines()]
        parts += [f"## {section.title}", "\n".join(lines), *section.remarks()]
    methods = plan.methods
    shown = dict.fromkeys(name for section in found for name in section.made if name in methods)
    about = [f"* `{name}`{' (control)' if methods[name].control else ''}: {methods[name].about}" for name in shown]
    return "\n\n".join([*parts, "## Methods", "\n".join(about), ""])


ABOUT = """Accuracy is that of held-out images, mean ± standard deviation over seeds; *as derived* before fine-tuning;
*to control* the mean difference, seed by seed, to the best control of the table; *of limit* the cost as a share of what
the budget allows; latency as measured, MACs as counted, both as shares of the dense network's; training and epochs with
those of the dense network that a method begins with; *choosing* the seconds of scoring and selecting
and of making up for what goes, where no training goes on meanwhile."""


def _settings(plan: Plan, found: Sequence[Section]) -> str:
    """What was run, how it was timed, and on which machine the page was made."""
    recipe, how = plan.base, conditions(plan.base.latency)
    dense_ms = [row.dense_ms for section in found for rows in section.made.values() for row in rows if row.dense_ms]
    own = f"{recipe.dense.epochs} of the dense network, then " if plan.own else "from a given network, "
    facts = {
        "network": " ".join([recipe.model.name, *(f"{key}={value}" for key, value in recipe.model.kwargs.items())]),
        "data": f"{recipe.data.name}, {recipe.data.image_size} px, batches of {recipe.data.batch_size}",
        "epochs": f"{own}{plan.epochs}; controls {plan.allowance} more; seeds {', '.join(map(str, plan.seeds))}",
        "training": f"precision {recipe.precision}{', channels last' * recipe.channels_last}",
        "latency": f"{how}, {recipe.latency.batch_size} images a call",
        "dense network": f"{median(dense_ms):.3g} ms a call" if dense_ms else "not timed",
        "machine": ", ".join(f"{key} {value}" for key, value in fingerprint().items()),
    }
    return "\n".join(f"* {name}: {fact}" for name, fact in facts.items())
