"""Timings that are functions of the model, in place of those that a clock would give.

What was not yet written down when a run was killed is then measured the same again. ``MEASURED`` counts the timings
that a process has taken: one that was written down must not be taken again.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nas_prune.costs.operators.timing import Bench, Point
from nas_prune.costs.timing import measure
from nas_prune.costs.timing.measure import Timings
from nas_prune.derivation import replace
from nas_prune.run import results
from nas_prune.run.calibration import bench
from nas_prune.run.report import curves
from nas_prune.tracing import Axes
from nas_prune.train import progress

MEASURED: list[object] = []
SCATTER = (0.0, -0.004, 0.003, 0.001, -0.002, 0.005, -0.001)


@contextmanager
def recorded() -> Iterator[None]:
    """No clock is asked inside the block; nor is a model traced twice, a figure drawn, or a thread started for bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "prepare_all", _sizes)
        patch.setattr(measure, "time_calls", _timings)
        patch.setattr(results, "stage_times", _stage_times)
        patch.setattr(bench, "time_point", _time_point)
        patch.setattr(bench, "plan", functools.partial(bench.plan, points=2))  # of hundreds, some dozens
        patch.setattr(bench, "sweeps", functools.partial(_first, bench.sweeps))
        patch.setattr(replace, "trace", _once(replace.trace))
        patch.setattr(progress, "Progress", functools.partial(progress.Progress, disable=True))
        patch.setattr(Path, "resolve", lambda path, **_: path)  # a fork that has moved works where it is, by any path
        for drawing in ("curve", "gate_curves", "scatter", "waterfall"):
            patch.setattr(curves, drawing, lambda *_, **__: None)  # half of the time of a case
        yield


def _first(sweeps: Callable[..., Sequence[Point]], axes: Axes) -> Sequence[Point]:
    """The first operators alone."""
    return sweeps(axes)[:12]


def _once(trace: Callable[..., Any]) -> Callable[..., Any]:
    """The axes of the one model of a recipe, found once."""
    found: list[Any] = []

    def known(*arguments: Any, **named: Any) -> Any:
        if not found:
            found.append(trace(*arguments, **named))
        return found[0]

    return known


def _sizes(models: Mapping[str, nn.Module], *_: Any) -> dict[str, float]:
    """In place of what can be called and timed: how many parameters each model has."""
    return {name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()}


def _timings(calls: Mapping[str, float], _seconds: float) -> Timings:
    """Milliseconds that depend on the model alone, a little scattered."""
    MEASURED.append(calls)
    return Timings({name: tuple((1 + size / 1e4) * (1 + each) for each in SCATTER) for name, size in calls.items()})


def _stage_times(models: Mapping[str, nn.Module], *_: Any, **__: Any) -> dict[str, dict[str, float]]:
    """A stage per child, by its parameters."""
    MEASURED.append(models.keys())
    return {name: _sizes(dict(model.named_children())) | {"other": 0.1} for name, model in models.items()}


def _time_point(point: Point, _bench: Bench) -> float:
    """An operator, by its widths."""
    MEASURED.append(point)
    return 0.01 + point.first * point.second / 1e5
