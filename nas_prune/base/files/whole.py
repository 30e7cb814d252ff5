"""Files that a crash cannot leave half written.

A whole file is written beside its target, flushed to the disk and renamed over it: a reader sees the old bytes or the
new ones. A journal (one JSON object per line) grows by appending: a line counts once its newline is there, so a crash
costs at most the line that was being written. JSON knows no NaN and no infinity: both are written as null.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas_prune.base.errors import NasPruneError, StorageError
from nas_prune.base.files.json_text import parse

LONGEST, LONGEST_JOURNAL = 2**26, 2**28  # bytes; those that nas_prune writes have less than 1 % of them


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write one file, whole or not at all; missing folders are made. Of processes that write it at once, one wins.

    Raises StorageError where it cannot be written; the old one is still there then.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses in the block is a StorageError that says which file could not be written."""
    try:
        yield
    except OSError as error:
        raise StorageError(path, error) from error


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write one JSON file, whole or not at all."""
    atomic_write(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], error: type[NasPruneError] = NasPruneError) -> Any:
    """What ``write_json`` wrote; a missing or broken file raises ``error``."""
    try:
        return parse(read_bytes(path, error))
    except ValueError as cause:
        raise error(f"{path} is not valid JSON ({cause}); restore it, or delete it to have it made again") from cause


def read_bytes(
    path: str | os.PathLike[str],
    error: type[NasPruneError],
    longest: int = LONGEST,
    advice: str = "restore it, or delete it",
) -> bytes:
    """The content of a regular file of at most so many bytes; whatever else is there raises ``error``.

    ``advice``: what to do about a larger one.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise error(f"{path} is not a regular file; put the file that belongs there in its place")
        if file.stat().st_size > longest:
            raise error(f"{path} is larger than any file of its kind ({longest} bytes); {advice}")
        return file.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause


def append_line(path: str | os.PathLike[str], value: Mapping[str, object]) -> None:
    """Append one JSON line in one write, on the disk when it returns; a torn last line, left by a crash, goes first."""
    target = Path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.truncate(target.read_bytes().rfind(b"\n") + 1)
            file.write(_line(value))
            file.flush()
            os.fsync(file.fileno())


def write_lines(path: str | os.PathLike[str], values: list[dict[str, Any]]) -> None:
    """Replace a journal, whole or not at all."""
    atomic_write(path, b"".join(_line(value) for value in values))


def read_lines(path: str | os.PathLike[str], error: type[NasPruneError] = NasPruneError) -> list[dict[str, Any]]:
    """Every whole line of a journal; no file is an empty journal, a broken line before the end raises ``error``."""
    if not os.path.lexists(path):
        return []
    *lines, _torn = read_bytes(path, error, LONGEST_JOURNAL).split(b"\n")
    return [_parsed(line, f"line {number} of {path}", error) for number, line in enumerate(lines, 1) if line.strip()]


def finite(value: object) -> object:
    """The same value with None in place of every number that JSON cannot hold (NaN, infinity)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(finite(value), allow_nan=False).encode() + b"\n"


def _parsed(line: bytes, where: str, error: type[NasPruneError]) -> dict[str, Any]:
    try:
        value = parse(line)
    except ValueError as cause:
        raise error(
            f"{where} is not valid JSON ({cause}); delete that line, or the file to have it made again"
        ) from cause
    if not isinstance(value, dict):
        raise error(f"{where} is not a JSON object; delete that line, or the file to have it made again")
    return value


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a platform that cannot open folders (Windows) does without."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
