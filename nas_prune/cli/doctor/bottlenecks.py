"""Bottlenecks: the layers that a search has left almost whole, and a search space that gives them more units.

SOSP (arXiv 2110.11395, expand-pruning): a network is pruned by scores that are compared over all layers; those of which
conspicuously little has gone hold it up. They get twice as many units, and the wider network is trained and pruned.
Ours: of a bottleneck, less than half of the median share over all layers has gone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nas_prune.base.axis import BITS, Axis, Member
from nas_prune.base.errors import NasPruneError
from nas_prune.base.wider import WIDEST
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.report.page import RunFolder
from nas_prune.tracing.space import SpaceFile, read_file

CONSPICUOUS = 0.5  # of the median share of units that have gone
FACTOR = 2.0  # of the paper


@dataclass(frozen=True)
class Layer:
    """An axis that could change, and how many of its units a search has kept."""

    axis: Axis
    kept: int

    @property
    def gone(self) -> float:
        """The share of its units that has gone."""
        return 1 - self.kept / self.axis.size


@dataclass(frozen=True)
class Report:
    """All layers of a run, those of which least has gone first; which of them are bottlenecks; the run's space."""

    layers: Sequence[Layer]
    bottlenecks: Sequence[str]
    space: str

    @staticmethod
    def of(folder: Path) -> "Report":
        """The report of a run folder. Raises NasPruneError where no search has ended there."""
        run = RunFolder.read(folder)
        if not run.arch or not run.axes:
            raise NasPruneError(
                f"no search has ended in {folder}: there is no arch.json; finish it with `nas-prune run`"
            )
        found = sorted(_layers(run.axes, run.arch), key=lambda layer: layer.gone)
        return Report(found, bottlenecks(found), recipes.read(folder / "recipe.yaml").space)

    def widened(self) -> SpaceFile:
        """The run's search space with twice the units in the bottlenecks. Raises NasPruneError where there is none."""
        if not self.bottlenecks:
            raise NasPruneError("no layer is a bottleneck, so there is none to widen; leave out --widen")
        return widened(read_file(self.space), [each.axis for each in self.layers if each.axis.name in self.bottlenecks])


def bottlenecks(layers: Collection[Layer]) -> list[str]:
    """The layers of which conspicuously little has gone."""
    usual = median(layer.gone for layer in layers) if layers else 0.0
    return [layer.axis.name for layer in layers if layer.gone < CONSPICUOUS * usual]


def widened(file: SpaceFile, axes: Collection[Axis]) -> SpaceFile:
    """A search space in which these axes have twice the units before the search, and nothing else has changed."""
    rules = list(file.rules)
    for axis in axes:
        rule = file.rule(axis)
        if rule is not None:
            wide = min(WIDEST, FACTOR * rule.widen)
            rules.append(rule.model_copy(update={"match": axis.name, "widen": wide}))
    return file.model_copy(update={"rules": rules})


def plain(report: Report) -> dict[str, Any]:
    """A report as plain data for JSON."""
    layers = [
        {
            "axis": layer.axis.name,
            "kind": layer.axis.kind,
            "units": layer.axis.size,
            "kept": layer.kept,
            "gone": layer.gone,
            "bottleneck": layer.axis.name in report.bottlenecks,
        }
        for layer in report.layers
    ]
    return {"space": report.space, "layers": layers}


def _layers(axes: Sequence[Mapping[str, Any]], arch: Mapping[str, Sequence[int]]) -> list[Layer]:
    """The widths that could change; those inside of a branch that has been closed are none any more."""
    closed = [
        each["name"].removesuffix("depth")
        for each in axes
        if each["kind"] == "depth" and not arch.get(each["name"], range(1))
    ]
    found = []
    for each in axes:
        members = tuple(Member(**member) for member in each["members"])
        axis = Axis(each["name"], each["kind"], each["size"], members, each["frozen"], each["divisor"])
        away = any(all(member.tensor.startswith(path) for member in members) for path in closed)
        if axis.frozen is None and axis.kind not in (*BITS, "stripe") and not away:
            found.append(Layer(axis, len(arch.get(axis.name, range(axis.size)))))
    return found
