"""Ctrl-C while modules are being imported: one message, and the process ends at once.

What is half imported raises whatever it likes, and nothing is at stake yet. This is the first that the program imports,
so it imports next to nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED = "interrupted"
RESUMED = f"{INTERRUPTED}; the same command resumes the run from its last checkpoint"
RESUMING = {"run", "calibrate", "search", "derive", "finetune", "evaluate", "compare", "coverage-names"}
RESUMING |= {"sweep local", "timm train"}  # commands that go on where they were stopped


def interrupted(words: Sequence[str]) -> str:
    """What a command line that is interrupted says: how to go on, where it can."""
    named = [word for word in words if not word.startswith("-")]
    return RESUMED if {named[0] if named else "", " ".join(named[:2])} & RESUMING else INTERRUPTED


class Interruptible:
    """Inside, Ctrl-C during an import ends the process with one message; elsewhere it is KeyboardInterrupt."""

    def __enter__(self) -> None:
        self.former = signal.signal(signal.SIGINT, _end_imports)

    def __exit__(self, *raised: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler if self.former is None else self.former)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is: nothing on the way takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """A handler that raises Terminated."""
    raise Terminated(number)


def _end_imports(number: int, frame: FrameType | None) -> None:
    here = frame
    while here is not None and not here.f_code.co_filename.startswith("<frozen importlib"):
        here = here.f_back
    if here is None:
        raise KeyboardInterrupt
    sys.stdout.flush()
    os.write(2, f"error: {interrupted(sys.argv[1:])}\n".encode())
    os._exit(128 + number)
