"""Runs in processes of their own, by fork: a process that has imported everything starts one in milliseconds.

What differs between any two processes, the numbers that are drawn without a seed, differs from run to run here, too.
"""

import contextlib
import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from brief import brief
from recorded import MEASURED

from nas_prune.cli import program as cli

SECONDS = 300  # a process that takes longer has come to a halt


@dataclass(frozen=True)
class Laboratory:
    """Where runs of one recipe are started, by one command."""

    folder: Path
    recipe: Mapping[str, Any]
    command: str = "run"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Runs can be started inside the block: timings are recorded, and a first run has imported and traced all."""
        with pytest.MonkeyPatch.context() as patch, brief():
            patch.setenv("NAS_PRUNE_CACHE", "cache")
            patch.chdir(self.fresh("warm"))
            with pytest.raises(SystemExit) as left:
                cli.main(self.words)
            assert not left.value.code
            gc.collect()
            gc.freeze()  # collections would copy the memory that forks share: twice the time of a case
            yield

    def fresh(self, name: str) -> Path:
        """A folder in which a run has not begun."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(self.recipe)))
        return folder

    @property
    def words(self) -> list[str]:
        """The command line, to be given in such a folder."""
        return [self.command, "recipe.yaml", "--out", "run"]

    def start(self, folder: Path, number: int = 0, words: Sequence[str] = ()) -> int:
        """Start the program; returns its process."""
        return forked(lambda: self.program(folder, number, words))

    def program(self, folder: Path, number: int, words: Sequence[str] = ()) -> int:
        """Become the program, at work in ``folder``; returns its exit code."""
        os.chdir(folder)
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        say_to(folder)
        MEASURED.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            cli.main(words or self.words)
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            beside(folder, "measured").write_text(str(len(MEASURED)))
        raise AssertionError("the program returns no exit code")


def forked(work: Callable[[], int]) -> int:
    """A process that does ``work`` and ends with its exit code; returns that process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: those of pytest-xdist
        process = os.fork()
    if process:
        return process
    code = 70
    try:
        signal.alarm(SECONDS)
        code = work()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """How a process ended: its exit code, or the signal that ended it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def finish(laboratory: Laboratory, folders: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Start the program in every folder, some at a time, hours later; each as it ends, with its exit code."""
    waiting, at_work = list(enumerate(folders, 1)), dict[int, Path]()
    while waiting or at_work:
        while waiting and len(at_work) < workers():
            number, folder = waiting.pop(0)
            age(folder)
            at_work[laboratory.start(folder, number)] = folder
        process, status = os.wait()
        yield at_work.pop(process), os.waitstatus_to_exitcode(status)


def age(folder: Path) -> None:
    """What was written now was written some hours ago: what a killed process left in the cache is nobody's by then."""
    then = time.time() - 5 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def workers() -> int:
    """How many runs go on at a time: two on the whole machine."""
    return max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def different(folder: Path, reference: Mapping[str, bytes]) -> list[str]:
    """How a run differs from the reference, times aside."""
    found = outcome(folder)
    missing = [f"{name} is missing" for name in sorted(reference.keys() - found.keys())]
    more = [f"{name} is left over" for name in sorted(found.keys() - reference.keys())]
    common = sorted(found.keys() & reference.keys())
    return [*missing, *more, *(f"{name} differs" for name in common if found[name] != reference[name])]


def outcome(folder: Path) -> dict[str, bytes]:
    """Every file of a run, and of the cache beside it, without what tells the time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): _timeless(path) for path in files}


def digest(folder: Path) -> str:
    """One number for the names and contents of all files and folders."""
    parts = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b"a folder"
        parts.update(hashlib.sha256(str(path.relative_to(folder)).encode()).digest() + hashlib.sha256(content).digest())
    return parts.hexdigest()


def beside(folder: Path, what: str) -> Path:
    """A file beside a folder that says something about the runs in it."""
    return folder.with_name(f"{folder.name}.{what}")


def said(folder: Path) -> str:
    """What the program has said in a folder."""
    return beside(folder, "log").read_text()


def say_to(folder: Path) -> None:
    """What this process says goes to a file beside the folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(beside(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))


def _timeless(path: Path) -> bytes:
    """The content of a file without seconds and times of day."""
    if path.name in ("seconds.json", "report.html"):  # the report shows the seconds
        return b"of this run" if path.stat().st_size else b""
    if path.name == "results.json":
        return json.dumps(json.loads(path.read_bytes()) | {"seconds": None}).encode()
    if path.name == "metrics.jsonl":
        return json.dumps([json.loads(line) | {"time": None} for line in path.read_text().splitlines()]).encode()
    return path.read_bytes()


def main(arguments: Sequence[str]) -> int:
    """``python runs.py FOLDER``: go on with the run in a folder, in an interpreter of its own."""
    folder = Path(arguments[0]).resolve()
    os.environ["NAS_PRUNE_CACHE"] = "cache"
    torch.set_num_threads(1)
    with brief(), contextlib.chdir(folder):
        return Laboratory(folder.parent, {}).program(folder, number=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
