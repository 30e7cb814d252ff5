"""Many latency targets of one run: what each cost in accuracy, as rows and as one chart.

The content is that of ``targets.json``: ``{"targets": [...], "dense": {...}}``. Latencies are the measured ones; a
target that was missed is drawn where it landed, and marked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from nas_prune.base.files.whole import atomic_write
from nas_prune.run.promise import disturbed
from nas_prune.run.report.curves import Ink, Rows, blank, legend, style, svg
from nas_prune.run.report.summary import DISTURBED, milliseconds, quantity

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """How a series is named and drawn."""

    label: str
    ink: Ink
    marker: str


PAPER = {  # the light colours of report.html.j2, for a drawing that has no page around it
    **{"text": "#1c2127", "muted": "#626b76", "line": "#e3e1db", "surface": "#ffffff", "baseline": "#7a4fd0"},
    **{"dense": "#7d8896", "search": "#c76a06", "finetune": "#2563c9", "target": "#c42b5f"},
    **{"good": "#18794e", "bad": "#b42318"},
}


def target_rows(content: Content) -> list[dict[str, str]]:
    """Heading -> text of every target, the dense model first; the same for the page and for the terminal."""
    dense = content.get("dense") or {}
    models = [{"target": "dense", "status": "", **dense}] if dense else []
    return [_row(each) for each in [*models, *content.get("targets", [])]]


def remarks(content: Content) -> list[str]:
    """Of every target that no architecture comes close to from below: why."""
    return [f"{row['target']}: {row['short']}" for row in content.get("targets", []) if row.get("short")]


def targets_headline(content: Content) -> str:
    """How many targets were met, and how much faster the fastest of those is; empty without targets."""
    targets = content.get("targets", [])
    if not targets:
        return ""
    met = [row for row in targets if row["status"] == "met"]
    shares = [row["measured_share"] for row in met if row.get("measured_share")]
    how = f"measured{DISTURBED if disturbed(content.get('dense') or {}, *met) else ''}"
    pace = f", the fastest {1 / min(shares):.2g}x faster than the dense model ({how})" if shares else ""
    cost = content.get("cost") or "latency"
    what = {"macs": "MACs", "params": "parameter"}.get(cost, cost)
    return f"{len(met)} of {len(targets)} {what} {'target' if len(targets) == 1 else 'targets'} met{pace}."


def pareto_svg(content: Content) -> str | None:
    """Top-1 against measured milliseconds, in the colours of the page; None where no target was measured."""
    targets = sorted(_placed(content.get("targets", []), "top1"), key=lambda row: float(row["measured_ms"]))
    if not targets:
        return None
    with style():
        figure, axes = blank("top-1, %", "measured latency of a call, ms", height=4.2)
        tuned = _placed(targets, "top1_finetuned")
        _series(axes, targets, "top1", Look("derived" if tuned else "top-1", Ink.SEARCH, "D"))
        _series(axes, tuned, "top1_finetuned", Look("fine-tuned", Ink.FINETUNE, "o"))
        dense = _placed([{"target": "dense", **(content.get("dense") or {})}], "top1")
        _dots(axes, dense, "top1", Look("dense", Ink.DENSE, "s"))
        for row in [*targets, *dense]:
            height = max(row["top1"], row.get("top1_finetuned") or row["top1"])
            _label(axes, row["target"], (row["measured_ms"], height))
        axes.set_position((0.12, 0.13, 0.86, 0.78))
        axes.margins(x=0.08, y=0.14)
        legend(axes)
        return svg(figure, "top-1 against measured latency, one point per target")


def save_pareto(content: Content, path: Path) -> Path | None:
    """Write the chart as an SVG file that stands alone; None, and no file, where no target was measured."""
    drawing = pareto_svg(content)
    if drawing is None:
        return None
    atomic_write(path, alone(drawing))
    return path


def alone(drawing: str) -> str:
    """A drawing for a page as an SVG file that stands alone, in the light colours."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    drawing = drawing.replace("<svg ", f'<svg {names} style="background: {PAPER["surface"]}" ', 1)
    for name, colour in PAPER.items():
        drawing = drawing.replace(f"var(--{name})", colour)
    return drawing


def _row(model: Mapping[str, Any]) -> dict[str, str]:
    """The texts of one row; what is not known is a dash. A speed is that of two models which were timed in turn."""
    now, spread, share = (model.get(key) for key in ("measured_ms", "measured_ms_spread", "measured_share"))
    measured = milliseconds(now)
    if now is not None and spread is not None:
        measured += f" ± {spread:.{len(measured.partition('.')[2])}f}"
    return {
        "target": str(model["target"]),
        **_limit(model),
        "predicted (ms)": milliseconds(model.get("predicted_ms")),
        "measured (ms)": measured,
        "speed": f"{1 / share:.2f}x" if share else "—",
        "top-1 (%)": _percent(model.get("top1")),
        "tuned (%)": _percent(model.get("top1_finetuned")),
        "MACs": quantity(model.get("macs")),
        "params": quantity(model.get("params")),
        "status": str(model["status"]),
    }


def _limit(model: Mapping[str, Any]) -> dict[str, str]:
    """The limit in the unit of the budget."""
    budget = model.get("budget") or {}
    if budget.get("unit", "ms") == "ms":
        return {"target (ms)": milliseconds(model.get("target_ms"))}
    return {f"target ({budget['unit']})": quantity(budget.get("limit"))}


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _placed(rows: Rows, key: str) -> list[Mapping[str, Any]]:
    """The rows that have a place in the chart."""
    return [row for row in rows if row.get("measured_ms") is not None and row.get(key) is not None]


def _series(axes: Axes, rows: Rows, key: str, look: Look) -> None:
    """One line through all points; those that missed their target are crosses."""
    axes.plot([row["measured_ms"] for row in rows], [row[key] for row in rows], color=look.ink.value, lw=1.2, alpha=0.5)
    missed = [row for row in rows if row["status"] != "met"]
    _dots(axes, [row for row in rows if row["status"] == "met"], key, look)
    if missed:
        x, y = ([row[name] for row in missed] for name in ("measured_ms", key))
        known = axes.get_legend_handles_labels()[1]
        label = "_" if "target missed" in known else "target missed"
        axes.scatter(x, y, marker="x", s=42, color=Ink.BAD.value, linewidths=1.8, zorder=4, label=label)


def _dots(axes: Axes, rows: Rows, key: str, look: Look) -> None:
    """Points with the spread of their measurement."""
    for first, row in enumerate(rows):
        place, spread = (row["measured_ms"], row[key]), row.get("measured_ms_spread") or 0.0
        label, colour = "_" if first else look.label, look.ink.value
        axes.errorbar(*place, xerr=spread, color=colour, elinewidth=1, capsize=0, zorder=2)
        axes.scatter(place[0], place[1], marker=look.marker, s=36, color=colour, zorder=3, label=label)


def _label(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """The name of a point, above it."""
    marks = axes.annotate(text, place, (0, 7), textcoords="offset points", ha="center", color=Ink.TEXT.value)
    marks.set_parse_math(False)
