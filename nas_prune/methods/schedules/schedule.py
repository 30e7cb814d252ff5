"""What a schedule is: a pure function of an epoch, and of how many there are -> how much is closed, and how firmly.

An epoch may be a fraction: in the middle of one, a limit that slides is asked for, too.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nas_prune.base.registry import Registry


@dataclass(frozen=True)
class Phase:
    """Where between open and closed for good the units are that will go.

    ``closed``: share of them that is closed now. ``hard``: share of the closed ones that never come back. ``soft``:
    what the weights of the other closed ones are multiplied by. All in [0, 1].
    """

    closed: float
    hard: float
    soft: float = 0.0


Schedule = Callable[[float, int], Phase]
"""``(epoch, epochs) -> Phase``: after epoch ``epoch`` (0-based) of ``epochs``. Options are keyword-only parameters."""

schedules: Registry[Callable[..., Phase]] = Registry("schedule", __package__)
