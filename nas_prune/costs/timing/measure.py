"""Time models in the runtime that will run them, and say how sure the figure is.

Models that are compared take turns, one timed call each in a round, so that a machine that slows down slows all of them
down: the ratio of two models is the median of their ratios round by round. Between two turns other models have emptied
the caches, which makes the next call of a small model up to four times as slow as it is alone; so a turn begins with
untimed calls. Rounds go on until every median is known to 1 %, or the time is used.

Even the ratio depends on what else the machine does: while a neighbour takes cache and memory, or the host of a virtual
machine is busy, a small ResNet-18 took up to 8 % longer relative to the dense one (correlation of the ratio with the
dense model's time: 0.8). So where it is known what a model takes while nothing disturbs, timings in which it took
longer are taken again (``calm``; ours).

How sure: the 95 % interval of a median by order statistics (David and Nagaraja, Order Statistics, section 7.1,
https://doi.org/10.1002/0471722162), which takes the calls as independent. Those of a busy machine are not; so the drift
from the first half of the rounds to the second is told beside it, and what is too noisy says so.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom
from torch import nn

from nas_prune.costs.timing.conditions import USUAL, Conditions, Runtime
from nas_prune.costs.timing.runtimes import prepare_all
from nas_prune.costs.timing.runtimes import threads as using
from nas_prune.costs.timing.turn import turn
from nas_prune.tracing.graph.capture import Inputs

ROUNDS = 6  # with fewer, not even the whole range is a 95 % interval of the median
SURE = 15  # rounds before which a narrow interval may be luck
WANTED = 0.01  # a median is good enough if half its interval is this share of it
REFILL = 2e-3  # seconds of untimed calls that refill the caches: MobileNetV3-small took six calls, 2 ms in all
SLOW = 10e-3  # seconds of a call that needs none: a cold start added about 2 % to one of ResNet-18
DISTURBED = 1.07  # times the calm milliseconds: timings above are taken again ...
TRIES = 4  # ... so often, and then the least disturbed counts
CROWDED = 2.0  # times the calm milliseconds: another process runs on the same core, and no ratio can be believed
PAUSES = (0.2, 1.0, 5.0)  # seconds before it is tried again
DRIFT, UNSURE = 0.10, 0.05  # shares from which a machine is called too noisy


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, half the interquartile range, how many calls were timed, and a 95 % interval
    of the median, ``low_ms`` to ``high_ms``; None where it was not recorded."""

    median_ms: float
    spread_ms: float
    calls: int
    low_ms: float | None = None
    high_ms: float | None = None

    @property
    def spread(self) -> float:
        """Spread as a share of the median."""
        return self.spread_ms / self.median_ms

    @property
    def uncertainty(self) -> float:
        """Half of the 95 % interval as a share of the median; infinite where it was not recorded."""
        if self.low_ms is None or self.high_ms is None:
            return math.inf
        return (self.high_ms - self.low_ms) / 2 / self.median_ms


@dataclass(frozen=True)
class Ratio:
    """How many times as long as a reference a model takes: the median, and its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """Half of the 95 % interval as a share of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True, eq=False, repr=False)
class Timings(Mapping[str, Timing]):
    """Name -> Timing of models that took turns. ``times``: name -> milliseconds of each call, in order of rounds."""

    times: Mapping[str, tuple[float, ...]]

    def __getitem__(self, name: str) -> Timing:
        values = self.times[name]
        low, median, high = interval(values)
        lower, upper = np.percentile(values, [25, 75])
        return Timing(median, float(upper - lower) / 2, len(values), low, high)

    def __iter__(self) -> Iterator[str]:
        return iter(self.times)

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"Timings({dict(self)})"

    def ratio(self, name: str, reference: str) -> Ratio:
        """How many times as long as ``reference`` the model takes."""
        return share(self.times[name], self.times[reference])

    def drift_of(self, name: str) -> float:
        """Relative change of a model's median from the first half of the rounds to the second."""
        values = self.times[name]
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        return float(np.median(second) / np.median(first)) - 1

    @property
    def drift(self) -> float:
        """The largest change of any model's median from the first half of the rounds to the second; never negative."""
        return max(abs(self.drift_of(name)) for name in self)

    @property
    def noisy(self) -> str | None:
        """Why the milliseconds cannot be relied on, or None if they can. A ratio may be good nevertheless."""
        drifting, unsure = max(self, key=lambda name: abs(self.drift_of(name))), max(self, key=self._uncertainty)
        advice = "stop what else runs on this machine, or measure for longer"
        if self.drift > DRIFT:
            change = f"{self.drift:.0%} {'longer' if self.drift_of(drifting) > 0 else 'less'}"
            return f"in the second half of the rounds {drifting} took {change} than in the first; {advice}"
        if self._uncertainty(unsure) > UNSURE:
            return f"the latency of {unsure} is only known to ±{self._uncertainty(unsure):.0%}; {advice}"
        return None

    def _uncertainty(self, name: str) -> float:
        return self[name].uncertainty


def measure(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    runtime: Runtime = "eager",
    threads: int | None = None,
    seconds: float = 1.0,
) -> Timing:
    """Median latency of ``model(example_inputs)`` in float32 and eval mode, in at most about ``seconds``.

    Other precisions and layouts: ``measure_together``. Raises what that raises.

    >>> timing = npr.measure(small, images, seconds=0.05)
    >>> timing.low_ms <= timing.median_ms <= timing.high_ms
    True
    """
    return measure_together({"model": model}, example_inputs, conditions=Conditions(runtime, threads), seconds=seconds)[
        "model"
    ]


def measure_together(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    *,
    conditions: Conditions = USUAL,
    seconds: float = 1.0,
    calm: Mapping[str, float] | None = None,
) -> Timings:
    """Latency of several models that take turns, for at most about ``seconds`` per model.

    ``calm``: milliseconds that some of them take while nothing disturbs the machine; disturbed timings are taken again,
    up to ``TRIES`` in all. Processes that share a machine can take turns (``turn``). Raises RuntimeMissingError with
    what to install, NasPruneError for conditions that the runtime cannot meet, RunError if a model does not run there.
    """
    with using(conditions.threads):
        calls = prepare_all(models, example_inputs, conditions)
        with turn():
            return undisturbed(lambda: time_calls(calls, seconds), calm or {})


def undisturbed(
    take: Callable[[], Timings], calm: Mapping[str, float], *, pause: Callable[[float], None] = time.sleep
) -> Timings:
    """The first timings in which no model took clearly longer than it does in a calm moment, or the least disturbed.

    Where the machine is crowded, it ``pause``s before the next ones.
    """
    taken: list[tuple[float, Timings]] = []
    while not taken or (taken[-1][0] > DISTURBED and len(taken) < TRIES):
        if taken and taken[-1][0] > CROWDED:
            pause(PAUSES[len(taken) - 1])
        timings = take()
        taken.append((max((timings[name].median_ms / ms for name, ms in calm.items()), default=1.0), timings))
    return min(taken, key=lambda each: each[0])[1]


def time_calls(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Warm up, then time one call of each in turn, until all are known well enough or the time is used.

    ``clock``: tells the time in seconds. At least ROUNDS rounds are timed, however long they take.
    """
    slow = {name: warm_up(call, seconds / 10, clock) > SLOW for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds, look = clock() + seconds * len(calls), 0, SURE
    while rounds < ROUNDS or clock() < end:
        for name, call in calls.items():
            if not slow[name]:
                _run_for(call, REFILL, clock)
            times[name].append(1e3 * _timed(call, clock))
        rounds += 1
        if rounds == look:
            look += math.ceil(rounds / 5)  # a look takes time, and each is another chance to stop by luck
            if all(_known(values) for values in times.values()):
                break
    return Timings({name: tuple(values) for name, values in times.items()})


def share(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The ratio of two models that took turns, from the times of their calls in the order of the rounds."""
    low, median, high = interval([one / other for one, other in zip(times, reference, strict=True)])
    return Ratio(median, low, high)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median of values and a 95 % interval of it: (low, median, high). For fewer than six, their whole range."""
    ordered = np.sort(values)
    rank = max(
        1, int(binom.ppf(0.025, len(values), 0.5))
    )  # the rank-th from either end; fewer lie below half as rarely
    return float(ordered[rank - 1]), float(np.median(ordered)), float(ordered[-rank])


def _known(values: Sequence[float]) -> bool:
    low, median, high = interval(values)
    return (high - low) / 2 <= WANTED * median


def warm_up(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """Run a call for some time, at least twice; seconds that the second one took."""
    end = clock() + seconds
    call()
    second = _timed(call, clock)
    _run_for(call, end - clock(), clock)
    return second


def _run_for(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> None:
    """Run a call again and again for some time."""
    end = clock() + seconds
    while clock() < end:
        call()


def _timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
