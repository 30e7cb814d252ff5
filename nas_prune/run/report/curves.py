"""The curves of a report as inline SVG that takes its colours from the page.

A plot is drawn in stand-in colours, and each is then replaced by a CSS variable of the page. So one drawing serves
light and dark, its text is the page's text, and nothing has to be fetched to see it.
"""

import io
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_prune.run.report.summary import StageRow, milliseconds, share

MOST_BARS = 24  # of a waterfall; more cannot be read

Rows = Sequence[Mapping[str, Any]]


class Ink(Enum):
    """The stand-in colour of each CSS variable (``Ink.TARGET`` becomes ``var(--target)``)."""

    TEXT = "#010201"
    MUTED = "#010202"
    LINE = "#010203"
    DENSE = "#010204"
    SEARCH = "#010205"
    FINETUNE = "#010206"
    BASELINE = "#010207"
    TARGET = "#010208"
    SURFACE = "#010209"
    GOOD = "#01020a"
    BAD = "#01020b"


def curve(metrics: Rows, key: str, label: str, *, target: float | None = None, percent: bool = False) -> str | None:
    """One figure over the epochs of the whole run, each stage in its colour; None where nothing was logged."""
    if not _points(metrics, key):
        return None
    with style():
        figure, axes = blank(label, "epoch of the run")
        for stage, start in _starts(metrics, key).items():
            rows = [row for row in _points(metrics, key) if row["stage"] == stage]
            epochs = [start + row["epoch"] for row in rows]
            (line,) = axes.plot(epochs, [row[key] for row in rows], color=_stage_ink(stage), markersize=3)
            line.set_marker("o" if len(rows) <= 25 else "")
            known = {other.get_label() for other in axes.get_lines()}
            line.set_label(_family(stage) if _family(stage) not in known else "_")
            axes.axvline(start, color=Ink.LINE.value, linewidth=0.8, zorder=0)
        legend(axes)
        _finish_curve(axes, target, percent=percent)
        return svg(figure, label)


def gate_curves(metrics: Rows) -> str | None:
    """The open share of each axis (thin) and of all units (thick) over the search."""
    rows = [row for row in _unrolled(metrics) if any(key.startswith("gate/") for key in row)]
    if not rows:
        return None
    with style():
        figure, axes = blank("open share of the gates", "epoch of the run")
        for key in sorted({key for row in rows for key in row if key.startswith("gate/")}):
            points = _points(rows, key)
            axes.plot(
                [row["epoch"] for row in points],
                [row[key] for row in points],
                color=Ink.DENSE.value,
                lw=0.8,
                alpha=0.45,
            )
        points = _points(rows, "search/open")
        axes.plot(
            [row["epoch"] for row in points], [row["search/open"] for row in points], color=Ink.SEARCH.value, lw=2.4
        )
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(lambda share, _position: f"{100 * share:.0f} %")
        return svg(figure, "open share of the gates over the search")


def scatter(samples: Rows, rounds: Rows, target: float | None, noise: float | None = None) -> str | None:
    """Predicted against measured latency: the calibration's samples, the derived models, and the target.

    ``noise``: how far two timings of one network differ, as a share; no prediction can be seen to be better.
    """
    timed = _points(samples, "predicted_ms")
    derived = [{"measured_ms": row["measured"], "predicted_ms": row["predicted"]} for row in rounds]
    if not timed and not derived:
        return None
    with style():
        figure, axes = blank("predicted, ms", "measured, ms", height=5.0)
        extent = [row[key] for row in [*_named(timed), *derived] for key in ("measured_ms", "predicted_ms")]
        ends = [min(extent) * 0.95, max(extent) * 1.05]
        _diagonal(axes, ends, noise)
        _dots(axes, _named(timed), "held out")
        _dots(axes, derived, "derived")
        if target is not None:
            axes.axvline(target, color=Ink.TARGET.value, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            _note(axes, (target, 0.02), " target", axes.get_xaxis_transform())
        legend(axes)
        return svg(figure, "predicted against measured latency")


def waterfall(rows: Sequence[StageRow]) -> str | None:
    """From the dense model's milliseconds down to the derived one's, one step per stage; None without stages."""
    if not rows:
        return None
    bars = falls(_fewest(rows))
    digits = len(milliseconds(bars[0][2]).partition(".")[2])
    with style():
        figure, axes = _wide_axes([name for name, _, _ in bars])
        for place, (_, start, end) in enumerate(bars):
            total = place in (0, len(bars) - 1)
            ink = (Ink.DENSE if place == 0 else Ink.SEARCH) if total else Ink.GOOD if end <= start else Ink.BAD
            axes.barh(place, abs(end - start), left=min(start, end), height=0.68, color=ink.value)
            text = f"{end:.{digits}f}" if total else _change(end - start, digits)
            _beside(axes, (max(start, end), place), text)
            if place:  # where the bar before ended
                axes.plot([bars[place - 1][2]] * 2, [place - 1.34, place + 0.34], color=Ink.MUTED.value, linewidth=0.6)
        return svg(figure, "where the milliseconds went, stage by stage")


def falls(rows: Sequence[StageRow]) -> list[tuple[str, float, float]]:
    """Name, start and end of every bar: each starts where the one before ended, the last is the derived model."""
    level = sum(row.dense_ms for row in rows)
    bars = [("dense", 0.0, level)]
    for row in rows:
        bars.append((row.name, level, level - row.saved_ms))
        level -= row.saved_ms
    return [*bars, ("derived", 0.0, level)]


def sparkline(metrics: Rows, key: str) -> str:
    """The points of a polyline, in a box of 100 by 20, of a value between 0 and 1; empty where nothing was logged."""
    points = _points(_unrolled(metrics), key)
    thinned = points[:: max(1, len(points) // 60)]
    if len(thinned) < 2:
        return ""
    first, last = thinned[0]["epoch"], thinned[-1]["epoch"]
    span = (last - first) or 1
    return " ".join(f"{100 * (row['epoch'] - first) / span:.1f},{19 - 18 * row[key]:.1f}" for row in thinned)


def style() -> Any:
    """matplotlib's settings for a block in which text stays text, and the same run gives the same bytes."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nas_prune", "font.size": 11})


def blank(vertical: str, horizontal: str, height: float = 3.7) -> tuple[Figure, Axes]:
    """An empty plot with named axes."""
    figure = Figure(figsize=(6.4, height))
    axes = figure.add_axes((0.1, 0.14, 0.88, 0.76))
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(Ink.LINE.value)
    axes.tick_params(colors=Ink.MUTED.value, length=3)
    axes.grid(axis="y", color=Ink.LINE.value, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel(vertical, color=Ink.MUTED.value)
    axes.set_xlabel(horizontal, color=Ink.MUTED.value)
    return figure, axes


def legend(axes: Axes) -> None:
    """Write the legend in one line above the plot, where no curve can run through it."""
    above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 4}
    names = axes.legend(frameon=False, labelcolor=Ink.MUTED.value, handletextpad=0.4, columnspacing=1.4, **above)
    for text in names.get_texts():
        text.set_parse_math(False)


def svg(figure: Figure, label: str) -> str:
    """The drawing without its file header, in the page's colours and named for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}">', text, count=1)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for ink in Ink:
        text = text.replace(ink.value, f"var(--{ink.name.lower()})")
    return text


def _points(rows: Rows, key: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get(key) is not None]


def _named(samples: Rows) -> list[dict[str, Any]]:
    return [{**row, "measured_ms": row["ms"]} for row in samples]


def _starts(metrics: Rows, key: str) -> dict[str, float]:
    """Epoch of the run at which each stage that logs ``key`` starts, in the order in which the stages ran."""
    starts: dict[str, float] = {}
    start = 0.0
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        rows = [row for row in metrics if row["stage"] == stage]
        if _points(rows, key):
            starts[stage] = start
        start += max(row["epoch"] for row in rows)
    return starts


def _unrolled(metrics: Rows) -> list[dict[str, Any]]:
    """The rows with epochs that count from the start of the run."""
    starts = _starts(metrics, "epoch")
    return [{**row, "epoch": starts[row["stage"]] + row["epoch"]} for row in metrics]


def _family(stage: str) -> str:
    """The stage that a phase belongs to: search for search-joint."""
    return stage.partition("-")[0]


def _stage_ink(stage: str) -> str:
    name = _family(stage).upper()
    return str(Ink[name].value if name in Ink.__members__ else Ink.TEXT.value)


def _finish_curve(axes: Axes, target: float | None, *, percent: bool) -> None:
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g} %")
    if target is not None:
        axes.axhline(target, color=Ink.TARGET.value, linewidth=1.2, linestyle=(0, (4, 3)))
        _note(axes, (0.01, target), "target", axes.get_yaxis_transform())
    axes.margins(x=0.01)


def _diagonal(axes: Axes, ends: Sequence[float], noise: float | None) -> None:
    """Where prediction and measurement agree, 5 % to either side of it, and what the clock itself cannot tell."""
    axes.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color=Ink.LINE.value, lw=0)
    axes.plot(ends, ends, color=Ink.MUTED.value, linewidth=0.8, zorder=1)
    text = "band: ±5 %" if noise is None else f"band: ±5 %\nnoise floor of a timing: {share(noise)}"
    ground = {"facecolor": Ink.SURFACE.value, "edgecolor": "none", "pad": 2}
    axes.text(0.02, 0.97, text, color=Ink.MUTED.value, transform=axes.transAxes, va="top", bbox=ground)


def _fewest(rows: Sequence[StageRow]) -> list[StageRow]:
    """At most so many rows as can be read: the stages that changed least become one."""
    if len(rows) <= MOST_BARS:
        return list(rows)
    ranked = sorted(rows, key=lambda row: abs(row.saved_ms), reverse=True)
    shown, rest = {row.name for row in ranked[: MOST_BARS - 1]}, ranked[MOST_BARS - 1 :]
    dense, derived = sum(row.dense_ms for row in rest), sum(row.derived_ms for row in rest)
    return [*(row for row in rows if row.name in shown), StageRow(f"{len(rest)} smaller steps", dense, derived, None)]


def _wide_axes(names: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty plot of horizontal bars, the first on top, as high as its names need."""
    height = 0.6 + 0.32 * len(names)
    figure, axes = blank("", "milliseconds of a call", height)
    left = min(0.4, 0.03 + 0.0135 * max(map(len, names)))
    axes.set_position((left, 0.5 / height, 0.9 - left, 1 - 0.55 / height))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=Ink.LINE.value, linewidth=0.6)
    return figure, axes


def _change(value: float, digits: int) -> str:
    """A signed figure, with a typographer's minus; 0 where nothing can be seen of it."""
    text = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if float(f"{value:.{digits}f}") else "0"


def _beside(axes: Axes, place: tuple[float, float], text: str) -> None:
    """A figure to the right of a bar."""
    axes.annotate(text, place, (4, 0), textcoords="offset points", va="center", color=Ink.TEXT.value, fontsize=10)


def _dots(axes: Axes, rows: Rows, label: str) -> None:
    ink, marker = {"held out": (Ink.FINETUNE, "o"), "derived": (Ink.SEARCH, "D")}[label]
    if rows:
        measured, predicted = ([row[key] for row in rows] for key in ("measured_ms", "predicted_ms"))
        axes.scatter(measured, predicted, label=label, marker=marker, s=24, color=ink.value, linewidths=1, zorder=3)


def _note(axes: Axes, place: tuple[float, float], text: str, transform: Any) -> None:
    axes.text(*place, text, color=Ink.TARGET.value, transform=transform, va="bottom")
