"""Timings that are functions of the model, in place of those that a clock would give.

Nothing that a busy machine does changes them: what is decided by milliseconds is decided the same again, and what was
not yet written down when a run was killed is measured the same again. ``MEASURED`` counts the timings that a process
has taken: one that was written down must not be taken again.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from nas_prune.costs.operators.timing import Bench, Point
from nas_prune.costs.timing import measure
from nas_prune.costs.timing.measure import Timings
from nas_prune.derivation import replace
from nas_prune.run import results
from nas_prune.run.calibration import bench
from nas_prune.tracing import Axes

MEASURED: list[object] = []
TRACED: dict[object, Axes] = {}
SCATTER = (0.0, -0.004, 0.003, 0.001, -0.002, 0.005, -0.001)


@contextmanager
def recorded() -> Iterator[None]:
    """No clock is asked inside the block how long a model takes, and no model is traced that is like an earlier one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replace, "trace", _once(replace.trace))
        patch.setattr(measure, "prepare_all", _sizes)
        patch.setattr(measure, "time_calls", _timings)
        patch.setattr(results, "stage_times", _stage_times)
        patch.setattr(bench, "time_point", _time_point)
        patch.setattr(bench, "plan", functools.partial(bench.plan, points=2))  # of hundreds, some dozens
        patch.setattr(bench, "sweeps", functools.partial(_first, bench.sweeps))
        yield


def _once(trace: Callable[..., Axes]) -> Callable[..., Axes]:
    """The axes of models that consist of the same modules and take the same images, found once."""

    def known(model: nn.Module, images: Tensor, *, stripes: bool) -> Axes:
        key = repr(model), images.shape, stripes
        if key not in TRACED:
            TRACED[key] = trace(model, images, stripes=stripes)
        return TRACED[key]

    return known


def _first(sweeps: Callable[..., Sequence[Point]], axes: Axes) -> Sequence[Point]:
    """The first operators alone."""
    return sweeps(axes)[:12]


def _sizes(models: Mapping[str, nn.Module], *_: Any) -> dict[str, float]:
    """In place of what can be called and timed: how many parameters each model has."""
    return {name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()}


def _timings(calls: Mapping[str, float], _seconds: float) -> Timings:
    """Milliseconds that depend on the model alone, a little scattered."""
    MEASURED.append(calls)
    return Timings({name: tuple((1 + size / 1e4) * (1 + each) for each in SCATTER) for name, size in calls.items()})


def _stage_times(models: Mapping[str, nn.Module], *_: Any, **__: Any) -> dict[str, dict[str, float]]:
    """A stage per child, by its parameters."""
    MEASURED.append(list(models))
    return {name: _sizes(dict(model.named_children())) | {"other": 0.1} for name, model in models.items()}


def _time_point(point: Point, _bench: Bench) -> float:
    """An operator, by its widths."""
    MEASURED.append(point)
    return 0.01 + point.first * point.second / 1e5
