"""Disks that a run finds in its way, for this process alone: full ones, and such that nothing can be written to.

Linux lets a process have mounts of its own (``unshare``); who may not have any gets the reason, to skip a test with.
"""

import ctypes
import os
from pathlib import Path

NEW_MOUNTS = 0x00020000
READ_ONLY, REMOUNT, BIND, PRIVATE = 0x1, 0x20, 0x1000, 0x4000 | 0x40000


def own_mounts() -> str:
    """From now on, what this process mounts is seen by it and its children alone; why not, if it cannot be."""
    system = _system()
    if system is None:
        return "this system has no unshare"
    if system.unshare(NEW_MOUNTS) or system.mount(None, b"/", None, PRIVATE, None):
        return f"no mounts of one's own: {os.strerror(ctypes.get_errno())}"
    return ""


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


def _mount(source: Path | str, target: Path, flags: int, options: str | None = None) -> None:
    system = _system()
    assert system is not None
    kind = b"tmpfs" if source == "tmpfs" else None
    if system.mount(os.fsencode(source), os.fsencode(target), kind, flags, options and options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _system() -> ctypes.CDLL | None:
    system = ctypes.CDLL(None, use_errno=True)
    return system if hasattr(system, "unshare") else None
