"""Runs that can be killed anywhere: recipes, recorded timings, a process per case by fork, and what a run has come to.

A process that has imported everything forks one process per case, so that a case takes about a second. A fork is the
run as it was at that instant: it copies the folder, moves there, and is killed; the run itself goes on to the next one.
Timings are functions of the model, so that what was not yet written down when a run was killed is measured the same
again. What changes from process to process, the numbers that are drawn without a seed, differs from case to case.
"""

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import yaml
from points import Operation, watching
from torch import nn

from nas_prune import cli, figures, progress, results, substitute
from nas_prune.costs.measure import Timings
from nas_prune.costs.operator_timing import Bench, Point

SECONDS = 180  # a case that takes longer has come to a halt
Ways = Callable[[Operation], Iterable[str]]


@dataclass(frozen=True)
class Case:
    """A run that was stopped: where, in which way, in which folder it lies, and how it ended."""

    number: int
    how: str
    where: str
    folder: Path
    status: int
    measured: int

    def __str__(self) -> str:
        return f"{self.number:4} {self.how:7} {self.where}"


class Laboratory:
    """A process in which a recipe has run once, so that all is imported and traced; it forks the runs of the cases."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], command: str = "run") -> None:
        self.folder, self.command = folder, command
        self.recipe = yaml.safe_dump(dict(recipe))
        self._known: dict[str, Any] = {}

    @contextmanager
    def open(self) -> Iterator["Laboratory"]:
        """Timings and traces are taken from a record inside the block; a first run has been made."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress, "Progress", functools.partial(progress.Progress, disable=True))  # has a thread
            measure = sys.modules["nas_prune.costs.measure"]  # the package has a function of that name
            patch.setattr(measure, "prepare_all", _sizes)
            patch.setattr(measure, "time_calls", _timings)
            patch.setattr(results, "stage_times", _stage_times)
            patch.setattr("nas_prune.bench.time_point", _time_point)
            for drawing in ("curve", "gate_curves", "scatter", "waterfall"):
                patch.setattr(figures, drawing, lambda *_, **__: None)  # half of the time of a case
            patch.setattr(substitute, "trace", self._traced(substitute.trace))
            patch.setenv("NAS_PRUNE_CACHE", "cache")
            patch.chdir(self.fresh("warm"))
            with pytest.raises(SystemExit) as ended:
                cli.main(self.words())
            assert not ended.value.code
            yield self

    def fresh(self, name: str) -> Path:
        """A folder in which a run has not begun."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(self.recipe)
        return folder

    def words(self) -> list[str]:
        """The command line, to be given in such a folder."""
        return [self.command, "recipe.yaml", "--out", "run"]

    def run(self, folder: Path, number: int = 0) -> int:
        """Start the program in a process of its own; returns that process."""
        return forked(lambda: self.program(folder, number))

    def program(self, folder: Path, number: int) -> int:
        """Become the program in ``folder``; returns its exit code."""
        os.chdir(folder)
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        _silently(folder.parent / f"{folder.name}.log")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            cli.main(self.words())
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            (folder.parent / f"{folder.name}.measured").write_text(str(len(MEASURED)))
        raise AssertionError("the program returns no exit code")

    def _traced(self, trace: Callable[..., Any]) -> Callable[..., Any]:
        """The axes of the one model of the recipe, found once."""

        def known(*arguments: Any, **named: Any) -> Any:
            if "axes" not in self._known:
                self._known["axes"] = trace(*arguments, **named)
            return self._known["axes"]

        return known


def record(laboratory: Laboratory, start: Path, ways: Ways, name: str = "cases") -> list[Case]:
    """Run to the end in ``start``, and stop a fork of the run at every operation in each of these ways."""
    folder = laboratory.folder / name
    folder.mkdir()

    def recording() -> int:
        recorder = _Recorder(start, folder, ways)
        with watching(start, recorder):
            return laboratory.program(start, number=0)

    assert ended(forked(recording)) == 0, log(start)
    rows = (json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines())
    return [Case(**row | {"folder": folder / row["folder"]}) for row in rows]


class _Recorder:
    """At every operation of a run: forks of it that stop there, each in a copy of the folder; equal copies are one."""

    def __init__(self, root: Path, folder: Path, ways: Ways) -> None:
        self.root, self.folder, self.ways = root, folder, ways
        self.count, self.idle = 0, False
        self.copies: dict[tuple[str, ...], Path] = {}

    def __call__(self, operation: Operation) -> None:
        if self.idle:
            return
        self.idle = True
        self.count += 1
        state = _digest(self.root)
        for how in self.ways(operation):
            alone = () if how == "SIGKILL" else (how, str(self.count))
            copy = self.copies.setdefault((state, *alone), self.folder / f"{len(self.copies):05}")
            status = self._stop(operation, how, copy)
            if status is None:
                return
            where = f"{operation.name} {operation.path}"
            row = {"number": self.count, "how": how, "where": where, "folder": copy.name, "status": status}
            with (self.folder / "cases.jsonl").open("a") as file:
                file.write(json.dumps(row | {"measured": len(MEASURED)}) + "\n")
        self.idle = False

    def _stop(self, operation: Operation, how: str, copy: Path) -> int | None:
        """Fork this process, let the fork stop there; how it ended. None in a fork that goes on, idle, to heed it."""
        process = os.fork()
        if process:
            return ended(process)
        signal.alarm(SECONDS)
        if not copy.exists():
            shutil.copytree(self.root, copy)
        os.chdir(copy)
        if how == "torn":
            operation.tear(copy)
        os.kill(os.getpid(), getattr(signal, how, signal.SIGKILL))
        return None


def killed(operation: Operation) -> Iterator[str]:
    """SIGKILL before an operation, and of a write also after half of it."""
    yield "SIGKILL"
    if len(operation.content) > 1:
        yield "torn"


def forked(work: Callable[[], int]) -> int:
    """A process that does ``work`` and ends with its exit code; returns its number."""
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


def finish(laboratory: Laboratory, cases: Sequence[Case]) -> dict[str, int]:
    """Start every case again, to its end, some at a time; name of its folder -> exit code."""
    codes: dict[str, int] = {}
    at_work: dict[int, Case] = {}
    waiting = list(enumerate(cases, 1))
    while waiting or at_work:
        while waiting and len(at_work) < workers():
            number, case = waiting.pop(0)
            at_work[laboratory.run(case.folder, number)] = case
        process, status = os.wait()
        codes[at_work.pop(process).folder.name] = os.waitstatus_to_exitcode(status)
    return codes


def workers() -> int:
    """How many runs go on at a time: two on the whole machine."""
    return max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def distinct(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by their folder: those that left the same behind share one, which has to be started again once."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.folder.name, []).append(case)
    return groups


def different(folder: Path, reference: Mapping[str, bytes]) -> list[str]:
    """The files by which a run differs from the reference, times aside."""
    found = outcome(folder)
    missing = [f"{name} is missing" for name in sorted(reference.keys() - found.keys())]
    more = [f"{name} is left over" for name in sorted(found.keys() - reference.keys())]
    return missing + more + [f"{name} differs" for name in sorted(found) if found[name] != reference.get(name, found[name])]


def outcome(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run, and of the cache beside it, without what tells the time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): _timeless(path) for path in files}


def log(folder: Path) -> str:
    """What the program said in a folder."""
    return (folder.parent / f"{folder.name}.log").read_text()


def _timeless(path: Path) -> bytes:
    """The content of a file without seconds and times of day."""
    if path.name in ("seconds.json", "report.html"):  # the report shows the seconds
        return b"a time" if path.stat().st_size else b""
    if path.name == "results.json":
        return json.dumps(json.loads(path.read_bytes()) | {"seconds": None}).encode()
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) | {"time": None} for line in path.read_text().splitlines()]
        return json.dumps(rows).encode()
    return path.read_bytes()


def _digest(folder: Path) -> str:
    """One number for the names and contents of all files and folders."""
    parts = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b"a folder"
        parts.update(hashlib.sha256(str(path.relative_to(folder)).encode()).digest() + hashlib.sha256(content).digest())
    return parts.hexdigest()


def _silently(path: Path) -> None:
    """What this process says goes to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)


MEASURED: list[float] = []  # every timing that this process has taken


def _sizes(models: Mapping[str, nn.Module], *_: Any) -> dict[str, float]:
    """In place of what can be called and timed: how many parameters each model has."""
    return {name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()}


def _timings(calls: Mapping[str, Any], _seconds: float) -> Timings:
    """Milliseconds that depend on the model alone, a little scattered."""
    MEASURED.append(sum(calls.values()))
    scatter = (0.0, -0.004, 0.003, 0.001, -0.002, 0.005, -0.001)
    return Timings(
        {name: tuple((1 + size / 1e4) * (1 + each) for each in scatter) for name, size in calls.items()}
    )


def _stage_times(models: Mapping[str, nn.Module], *_: Any, **__: Any) -> dict[str, dict[str, float]]:
    """A stage per child, by its parameters."""
    MEASURED.append(0.0)
    children = {name: dict(model.named_children()) for name, model in models.items()}
    return {name: _sizes(parts) | {"other": 0.1} for name, parts in children.items()}


def _time_point(point: Point, _bench: Bench) -> float:
    """An operator, by its widths."""
    MEASURED.append(0.0)
    return 0.01 + point.first * point.second / 1e5
