"""Every operation that changes the working folder, told just before it happens: where a process can be killed.

Seen are the calls by which Python changes files: those of ``os``, and the system calls under a file object (a raw file
that tells of each write stands under Python's own buffers, so a buffered write counts when it reaches the system).
"""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TWO_PATHS = ("replace", "rename", "link", "symlink")
ONE_PATH = ("unlink", "remove", "mkdir", "rmdir")
PATH_OR_FILE = ("truncate", "ftruncate", "fsync", "fdatasync", "chmod", "utime")
WRITES = ("write", "pwrite")
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NEEDS_ROOM = ("open", "write", "mkdir", "link", "symlink")


@dataclass(frozen=True)
class Operation:
    """One call: its name, what it is about (below the folder), and of a write where and which bytes."""

    name: str
    path: str
    start: int = 0
    content: bytes = b""

    def __str__(self) -> str:
        return f"{self.name} {self.path}"

    def tear(self, folder: Path) -> None:
        """Let the first half of a write reach the file, in a copy of the folder."""
        with (folder / self.path).open("r+b") as file:
            file.seek(self.start)
            file.write(self.content[: len(self.content) // 2])


Seen = Callable[[Operation], None]


@contextmanager
def watching(seen: Seen) -> Iterator[None]:
    """Call ``seen`` before every operation below the working folder; what it raises, the operation raises."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TWO_PATHS:
            patch.setattr(os, name, _of_two_paths(name, seen))
        for name in ONE_PATH:
            patch.setattr(os, name, _of_one_path(name, seen))
        for name in PATH_OR_FILE:
            patch.setattr(os, name, _of_path_or_file(name, seen))
        for name in WRITES:
            patch.setattr(os, name, _of_descriptor(name, seen))
        patch.setattr(os, "open", _os_open(seen))
        opening = _open(seen)
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        yield


def _below(target: Any, folder: int | None = None) -> str | None:
    """The path of a file below the working folder, None for what is elsewhere; as calls name it: by a path, by a
    descriptor, by a path from the descriptor of a folder.
    """
    root = os.getcwd()
    if isinstance(target, int):
        absolute = os.readlink(f"/proc/self/fd/{target}")
    else:
        base = root if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        absolute = os.path.normpath(os.path.join(base, os.fsdecode(target)))
    return os.path.relpath(absolute, root) if f"{absolute}/".startswith(f"{root}/") else None


def _of_two_paths(name: str, seen: Seen) -> Callable[..., Any]:
    call = getattr(os, name)

    def watched(source: Any, target: Any, **folders: int | None) -> Any:
        path = _below(target, folders.get("dst_dir_fd")) or _below(source, folders.get("src_dir_fd"))
        if path is not None:
            seen(Operation(name, path))
        return call(source, target, **folders)

    return watched


def _of_one_path(name: str, seen: Seen) -> Callable[..., Any]:
    call = getattr(os, name)

    def watched(path: Any, *others: Any, dir_fd: int | None = None) -> Any:
        inside = _below(path, dir_fd)
        if inside is not None:
            seen(Operation(name, inside))
        return call(path, *others, dir_fd=dir_fd)

    return watched


def _of_path_or_file(name: str, seen: Seen) -> Callable[..., Any]:
    call = getattr(os, name)

    def watched(target: Any, *others: Any, **named: Any) -> Any:
        path = _below(target)
        if path is not None:
            seen(Operation(name, path))
        return call(target, *others, **named)

    return watched


def _of_descriptor(name: str, seen: Seen) -> Callable[..., Any]:
    call = getattr(os, name)

    def watched(descriptor: int, content: Any, *offset: int) -> Any:
        path = _below(descriptor)
        if path is not None:
            start = offset[0] if offset else os.lseek(descriptor, 0, os.SEEK_CUR)
            seen(Operation("write", path, start, bytes(content)))
        return call(descriptor, content, *offset)

    return watched


def _os_open(seen: Seen) -> Callable[..., int]:
    call = os.open

    def watched(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        inside = _below(path, dir_fd) if flags & CHANGING else None
        if inside is not None:
            seen(Operation("open", inside))
        return call(path, flags, mode, dir_fd=dir_fd)

    return watched


def _open(seen: Seen) -> Callable[..., Any]:
    call = io.open

    class Raw(io.FileIO):
        """A file below the folder; every write and truncation is told."""

        def write(self, content: Any) -> int:
            start = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
            seen(Operation("write", str(_below(self.fileno())), start, bytes(content)))
            return super().write(content)

        def truncate(self, size: int | None = None) -> int:
            seen(Operation("truncate", str(_below(self.fileno()))))
            return super().truncate(size)

    def watched(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **named: Any) -> Any:
        path = _below(file) if set(mode) & set("wax+") else None
        if path is None:
            return call(file, mode, buffering, *text, **named)
        seen(Operation("open", path))
        raw = Raw(file, mode.replace("b", "").replace("t", ""), named.pop("closefd", True), named.pop("opener", None))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **named)

    return watched
