"""The drawings: top-1 of the methods that matter over what their networks cost, on one backbone, from scratch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from nas_prune.base.files.whole import atomic_write
from nas_prune.run.report.curves import Ink, blank, style, svg
from nas_prune.run.report.targets import alone

from .cells import cell_of
from .table import Row, made_by

BACKBONE = "resnet18_half"  # the one with all methods
TICKS, ENDS = (0.1, 0.25, 0.5), (0.07, 0.62)  # of the axis of costs
# Method -> its name in the drawing, and how it is drawn.
SHOWN = {
    "once_hard_concrete": ("one training (ours)", Ink.SEARCH, "D"),
    "uniform": ("uniform width", Ink.DENSE, "s"),
    "uniform_single": ("uniform, any width", Ink.MUTED, "v"),
    "tp_taylor": ("Torch-Pruning, Taylor", Ink.FINETUNE, "o"),
}
# What is limited -> its column in the results, and its name.
COSTS = {"macs": ("macs", "MACs"), "latency": ("onnxruntime", "latency in ONNX Runtime")}


def write_charts(folder: Path, rows: Sequence[Row]) -> None:
    """A drawing for each cost that can be limited, as macs.svg and latency.svg."""
    for cost in COSTS:
        drawing = chart(rows, cost)
        if drawing is not None:
            atomic_write(folder / f"{cost}.svg", alone(drawing))


def chart(rows: Sequence[Row], cost: str) -> str | None:
    """Means over seeds with their range, a mark per target; the dense network is a line. None where nothing was run."""
    here = [row for row in rows if (row["setting"], row["backbone"], row["cost"]) == ("scratch", BACKBONE, cost)]
    (column, name), made = COSTS[cost], made_by(here)
    shown = [method for method in SHOWN if method in made]
    if not shown:
        return None
    with style():
        figure, axes = blank("top-1, %", f"{name}, as a share of the dense network's", height=4.0)
        for method in shown:
            _draw(axes, list(_points(made[method], column)), *SHOWN[method])
        if "dense" in made:
            dense = mean(row["top1"] for row in made["dense"])
            axes.axhline(dense, color=Ink.BASELINE.value, linewidth=1, linestyle=(0, (4, 3)), label="dense")
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"{share:g}x" for share in TICKS])
        axes.set_xlim(ENDS)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="best", frameon=False, labelcolor=Ink.MUTED.value)
        return svg(figure, f"top-1 over {name}")


def _points(rows: Sequence[Row], column: str) -> Iterator[tuple[float, list[float]]]:
    """Of each target, the smallest first: the mean cost, and the accuracies of all seeds."""
    for share in sorted({cell_of(row).share for row in rows}):
        at = [row for row in rows if cell_of(row).share == share]
        yield mean(row[column] for row in at), [row["top1"] for row in at]


def _draw(axes: Axes, points: Sequence[tuple[float, list[float]]], label: str, ink: Ink, marker: str) -> None:
    """One method."""
    costs, seeds = [cost for cost, _ in points], [accuracies for _, accuracies in points]
    axes.vlines(costs, [min(each) for each in seeds], [max(each) for each in seeds], color=ink.value)
    axes.plot(costs, [mean(each) for each in seeds], color=ink.value, lw=1.2, marker=marker, ms=6, label=label)
