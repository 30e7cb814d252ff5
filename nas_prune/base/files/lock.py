"""One process at a time works in a run folder: the second one is told who the first one is.

The lock is the operating system's (``fcntl``), so it ends with its process, however that ends; what is left of the file
says nothing then. Data loaders, which are forks of the process, do not inherit it. The file holds who has the lock.
"""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from nas_prune.base.errors import InUseError
from nas_prune.base.files.whole import writing

FILE = ".lock"
PATIENCE = 2.0  # seconds in which who has just taken a lock has written who it is


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder during the block. Raises InUseError where another process holds it.

    A file system that knows no locks (some network ones) is used without one, and a warning says so.
    """
    path = folder / FILE
    with writing(path):
        descriptor = _taken(path)
    try:
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _here())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it looks at the name again
        os.close(descriptor)


def clear(folder: Path) -> None:
    """Remove the lock that a killed process left, where there is one and it can be removed; one that is held stays."""
    if not (folder / FILE).exists() or not os.access(folder, os.W_OK):
        return
    try:
        with locked(folder):
            return
    except InUseError:
        return


def _taken(path: Path) -> int:
    """Descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was released, and its file removed, between the two


def _lock(descriptor: int, path: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise InUseError(
                f"{path.parent} is in use by {_holder(path)}; wait until it ends, stop it, or choose another folder"
            ) from None
        logging.getLogger(__name__).warning(
            "%s cannot be locked (%s); see to it that one process at a time works in it", path.parent, error.strerror
        )


def _here() -> bytes:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}).encode()


def _holder(path: Path) -> str:
    """Who holds the lock, in words."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            facts = json.loads(path.read_bytes()[:1000])
            return f"process {facts['process']} on host {facts['host']} since {facts['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"
