"""A folder that a crash cannot leave half written.

It is written beside its target and renamed; an old one is renamed out of the way first, and removed last.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_prune.base.files.whole import sync_folder

TEMPORARY = re.compile(r"\..+\.tmp")
PREVIOUS = re.compile(r"\.(.+)\.previous")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which replaces ``target`` when the block ends without an error.

    Killed between the two renames, it leaves the old folder whole, as ``previous(target)``.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(previous(target), ignore_errors=True)
            target.rename(previous(target))
        temporary.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(previous(target), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tidy(folder: Path, *, seconds: float = 0.0) -> None:
    """Remove what writers that were killed left in a folder and below; what is younger than ``seconds`` stays, so that
    others may be writing there.

    An old folder whose successor had not taken its place yet is put back. Hidden files of others stay.
    """
    now = time.time()
    found = [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name) or PREVIOUS.fullmatch(path.name)]
    for path in sorted(found, key=lambda path: len(path.parts)):
        if not path.exists() or now - path.stat().st_mtime < seconds:
            continue
        left = PREVIOUS.fullmatch(path.name)
        if left and path.is_dir() and not (path.parent / left[1]).exists():
            path.rename(path.parent / left[1])
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError, and make nothing, where a folder cannot be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{there} is not writable")


def previous(target: Path) -> Path:
    """Where the old folder is while the new one takes its place."""
    return target.with_name(f".{target.name}.previous")
