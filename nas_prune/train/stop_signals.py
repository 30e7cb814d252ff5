"""A polite stop: while a loop runs, SIGINT and SIGTERM raise a flag that the loop reads between two steps.

So a run stops at a place from which it can be resumed. Whoever cannot wait presses Ctrl-C a second time.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The number of the signal that asked to stop, or None."""

    requested: int | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: note the first one; a further SIGINT raises KeyboardInterrupt at once."""
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = self.requested or number


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into ``.requested``; the former handlers are back on exit.

    Python lets only the main thread set handlers: in any other thread the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
