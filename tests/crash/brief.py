"""What takes time in a run and is not under test here: figures, bars, timings, tracing the same model again."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded import recorded

from nas_prune.run.report import curves
from nas_prune.train.record import progress


@contextmanager
def brief() -> Iterator[None]:
    """Inside the block timings are recorded, no figure is drawn, and no thread is started for bars."""
    with recorded(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "Progress", functools.partial(progress.Progress, disable=True))
        patch.setattr(Path, "resolve", lambda path, **_: path)  # a fork that has moved works where it is, by any path
        for drawing in ("curve", "gate_curves", "scatter", "waterfall"):
            patch.setattr(curves, drawing, lambda *_, **__: None)  # half of the time of a case
        yield
