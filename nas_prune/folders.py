"""A folder that a crash cannot leave half written.

It is written beside its target and renamed; an old one is renamed out of the way first, and removed last.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        shutil.rmtree(previous(target), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def previous(target: Path) -> Path:
    """Where the old folder is while the new one takes its place."""
    return target.with_name(f".{target.name}.previous")
