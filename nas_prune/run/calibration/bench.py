"""The operators of a run's model timed alone: a table for the additive predictor, sweeps for the staircase.

Each point is journalled when it is timed, so that a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import read_journal
from nas_prune.base.files.whole import append_line
from nas_prune.base.follow import Follow
from nas_prune.costs import Bench, Conditions, OperatorTable, measured_divisors
from nas_prune.costs.operators.staircase import sweeps
from nas_prune.costs.operators.table import plan
from nas_prune.costs.operators.timing import Point, time_point
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.files import PointRow
from nas_prune.tracing.space import SearchSpace

MOST = 16  # a measured step above this is noise more often than not, and leaves few widths


def conditions(settings: LatencySettings) -> Conditions:
    """Under which conditions a recipe wants its latency measured."""
    threads = settings.threads or torch.get_num_threads()
    return Conditions(settings.runtime, threads, settings.precision, settings.channels_last)


def operator_table(
    space: SearchSpace, settings: LatencySettings, device: str, journal: Path, follow: Follow[Point]
) -> OperatorTable:
    """Milliseconds of every operator of the model over a grid of both its widths."""
    points = plan(space.axes)
    return OperatorTable.from_points(
        zip(points, _timed(points, _bench(settings, device), journal, follow), strict=True)
    )


def staircase(
    space: SearchSpace, settings: LatencySettings, device: str, journal: Path, follow: Follow[Point]
) -> SearchSpace:
    """The space, with the device's own width steps in place of its divisors; heads are left as they are."""
    points = sweeps(space.axes)
    measured = zip(points, _timed(points, _bench(settings, device), journal, follow), strict=True)
    found = measured_divisors(space.axes, measured)
    kinds = {name for name, axis in space.free.items() if axis.kind in ("channel", "hidden")}
    return space.stepped({name: min(step, MOST) for name, step in found.items() if name in kinds})


def _bench(settings: LatencySettings, device: str) -> Bench:
    return Bench(conditions(settings), settings.batch_size, device=device)


def _timed(points: Sequence[Point], bench: Bench, journal: Path, follow: Follow[Point]) -> list[float]:
    """Milliseconds of every point, the missing ones timed now."""
    known = {row["point"]: float(row["ms"]) for row in read_journal(journal, PointRow, CheckpointError)}
    missing = [point for point in points if point.key not in known]
    for point in follow(missing, "timing operators"):
        known[point.key] = time_point(point, bench)
        append_line(journal, {"point": point.key, "ms": known[point.key]})
    return [known[point.key] for point in points]
