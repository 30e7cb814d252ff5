"""A comparison as a drawing: a line per method, a mark per target, from the least to the most accurate seed."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from nas_prune.run.compare.cells import DENSE
from nas_prune.run.compare.sections import Section
from nas_prune.run.report.curves import Ink, blank, legend, style, svg

MARKS = "osD^v"  # of the targets, in turn
INCHES, AROUND = 0.21, 1.1  # height of a line; of what is around them


def chart(found: Sequence[Section]) -> str | None:
    """Top-1 of every method, the best one at the top; None where there is nothing to draw."""
    names = _worst_first(found)
    if not names:
        return None
    height = AROUND + INCHES * len(names)
    with style():
        figure, axes = blank("", "top-1, % (mean; line: least to most of the seeds)", height=height)
        for section, mark in zip(found, MARKS, strict=False):
            for control, ink in ((False, Ink.SEARCH), (True, Ink.DENSE)):
                own = [name for name in section.made if name != DENSE and (name in section.controls) == control]
                seeds = {names.index(name): [float(row.top1 or 0) for row in section.made[name]] for name in own}
                if seeds:
                    _draw(axes, seeds, mark, ink, f"{section.target}, controls" if control else section.title)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_position((0.34, 0.5 / height, 0.64, 1 - AROUND / height + 0.1 / height))
        legend(axes)
        return svg(figure, "top-1 of every method, a mark per target")


def _worst_first(found: Sequence[Section]) -> list[str]:
    """The methods, ordered by their mean in the first section that has them."""
    means: dict[str, tuple[int, float]] = {}
    for number, section in enumerate(found):
        for name, rows in section.made.items():
            if name != DENSE:
                means.setdefault(name, (-number, mean(float(row.top1 or 0) for row in rows)))
    return sorted(means, key=lambda name: means[name])


def _draw(axes: Any, seeds: Mapping[int, Sequence[float]], mark: str, ink: Ink, label: str) -> None:
    """A mark, and a line, at each height."""
    heights, accuracies = list(seeds), list(seeds.values())
    axes.hlines(heights, [min(each) for each in accuracies], [max(each) for each in accuracies], color=ink.value)
    axes.scatter(
        [mean(each) for each in accuracies], heights, s=26, marker=mark, color=ink.value, zorder=3, label=label
    )
