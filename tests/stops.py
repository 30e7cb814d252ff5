"""Signals that ask a training to stop at a look of its own, so that a test says after which step."""

import signal


class Stop:
    """A signal that arrives at the ``after``-th look; none if that is 0."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def requested(self) -> int | None:
        """The signal of this look."""
        self.left -= 1
        return signal.SIGTERM if self.left == 0 else None
