"""Of processes that share a machine, one measures at a time: a timing beside another timing is that of neither.

The processes name one file, in the environment variable ``NAS_PRUNE_MEASURING_LOCK``, and whoever holds its lock times.
Without the variable nobody waits. The lock is the operating system's, so it ends with its process, however that ends.
"""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_prune.base.files.whole import writing

MEASURING_LOCK = "NAS_PRUNE_MEASURING_LOCK"
_BUSY = (errno.EACCES, errno.EAGAIN)
_LOOK = 0.05  # seconds between two looks whether it is one's turn
_inside: list[Path] = []  # what this process holds: timings inside timings do not wait for themselves
_told: set[Path] = set()


@contextmanager
def turn() -> Iterator[None]:
    """Hold the lock that the environment names during the block; waits for it, and says so once."""
    name = os.environ.get(MEASURING_LOCK)
    if not name or _inside or os.name != "posix":
        yield
        return
    path = Path(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(descriptor, path)
        _inside.append(path)
        yield
    finally:
        _inside.clear()
        os.close(descriptor)


def _wait(descriptor: int, path: Path) -> None:
    """Until the lock is this process's; a file system that knows no locks is used without, and a warning says so."""
    import fcntl

    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            problem = error
        if problem.errno not in _BUSY:
            _say(path, f"{path} cannot be locked ({problem.strerror}); see to it that one process at a time measures")
            return
        _say(path, f"another process measures; this one waits for its turn ({path})")
        time.sleep(_LOOK)


def _say(path: Path, text: str) -> None:
    if path not in _told:
        _told.add(path)
        logging.getLogger(__name__).warning("%s", text)
