"""Disks for this process alone: small ones, and such that nothing can be written to.

Linux lets a process have mounts of its own (``unshare``), if it is root's.
"""

import ctypes
import os
from pathlib import Path

from runs import ended, forked

NEW_MOUNTS = 0x00020000
READ_ONLY, REMOUNT, BIND, PRIVATE = 0x1, 0x20, 0x1000, 0x40000 | 0x4000


def own_mounts() -> None:
    """From now on, what this process mounts is seen by it and its children alone. Raises OSError if it may not."""
    _done(_system().unshare(NEW_MOUNTS), "unshare")
    _done(_system().mount(None, b"/", None, PRIVATE, None), "mount /")


def refused() -> str:
    """Why this process cannot have mounts of its own; nothing if it can."""

    def work() -> int:
        try:
            own_mounts()
        except (OSError, AttributeError):
            return 1
        return 0

    return "no mounts of one's own here (it takes Linux and root)" if ended(forked(work)) else ""


def read_only(folder: Path) -> None:
    """Nothing below the folder can be written from now on."""
    _mount(folder, folder, BIND)
    _mount(folder, folder, BIND | REMOUNT | READ_ONLY)


def small(folder: Path, size: int) -> None:
    """An empty disk of so many bytes at the folder."""
    _mount("tmpfs", folder, 0, f"size={size}")


def larger(folder: Path, size: int) -> None:
    """The same disk with more room."""
    _mount("tmpfs", folder, REMOUNT, f"size={size}")


def _mount(source: Path | str, target: Path, flags: int, options: str = "") -> None:
    kind = b"tmpfs" if source == "tmpfs" else None
    _done(_system().mount(os.fsencode(source), os.fsencode(target), kind, flags, options.encode()), f"mount {target}")


def _done(code: int, what: str) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
