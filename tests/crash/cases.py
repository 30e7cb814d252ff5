"""Every instant of a run at which it can be stopped, each in a copy of its folder: a case, to be started again.

At each instant the run forks. The fork is the run as it is then: it copies the folder, moves there, and is stopped by a
signal that it sends itself, or by a disk that is full from now on. The run waits for it and goes on to the next.
What a killed process leaves behind is what its folder held then, so equal copies are one.
"""

import errno
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from points import NEEDS_ROOM, Operation, Seen, watching
from recorded import MEASURED
from runs import Laboratory, beside, different, digest, ended, finish, forked, said, say_to
from torch.optim.optimizer import register_optimizer_step_post_hook

from nas_prune.run import results
from nas_prune.train import loop as train

FULL = "a full disk"
Ways = Callable[[Operation], Iterable[str]]
Instants = Callable[[Seen], AbstractContextManager[None]]


@dataclass(frozen=True)
class Case:
    """A run that was stopped: at which instant, how, in which folder it lies, how it ended, what it had measured."""

    number: int
    how: str
    where: str
    folder: Path
    status: int
    measured: int

    def __str__(self) -> str:
        return f"{self.number} {self.how} {self.where} ({self.folder.name})"


def killed(operation: Operation) -> Iterator[str]:
    """SIGKILL before an operation, and of a write also after half of it."""
    yield "SIGKILL"
    if len(operation.content) > 1:
        yield "torn"


def asked(_instant: Operation) -> Iterator[str]:
    """The signals by which users and schedulers stop a program."""
    yield from ("SIGTERM", "SIGINT")


def without_room(operation: Operation) -> Iterator[str]:
    """A disk that becomes full in this operation, of a write after half of it."""
    if operation.name in NEEDS_ROOM:
        yield FULL


def in_turn() -> Ways:
    """At each instant another way."""
    ways = itertools.cycle(("SIGKILL", FULL, "SIGTERM", "torn", "SIGINT"))
    return lambda operation: [next(ways) if operation.path else "SIGKILL"]


def every(step: int, ways: Ways) -> Ways:
    """These ways at one operation in ``step``."""
    numbers = iter(range(10**9))
    return lambda operation: ways(operation) if next(numbers) % step == 0 else ()


@contextmanager
def steps(seen: Seen) -> Iterator[None]:
    """The instants after a step of an optimizer, and those in which an evaluation begins."""

    def evaluating(top1: Callable[..., float]) -> Callable[..., float]:
        def watched(*arguments: Any) -> float:
            seen(Operation("evaluation", ""))
            return top1(*arguments)

        return watched

    hook = register_optimizer_step_post_hook(lambda *_: seen(Operation("step", "")))
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, results):
            patch.setattr(module, "top1", evaluating(module.top1))
        yield
    hook.remove()


@contextmanager
def anything(seen: Seen) -> Iterator[None]:
    """Operations, steps and evaluations."""
    with watching(seen), steps(seen):
        yield


def record(laboratory: Laboratory, start: Path, ways: Ways, instants: Instants = watching) -> list[Case]:
    """Run to the end in ``start``; the cases: at every instant, in each of these ways."""
    folder = start.with_name(f"{start.name}.cases")
    folder.mkdir()

    def recording() -> int:
        with instants(_Recorder(start, folder, ways)):
            return laboratory.program(start, number=0)

    assert ended(forked(recording)) == 0, said(start)
    rows = (json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines())
    return [Case(**row | {"folder": folder / row["folder"]}) for row in rows]


def unequal(laboratory: Laboratory, cases: Iterable[Case], whole: Path, reference: Mapping[str, bytes]) -> list[str]:
    """Start all cases again, to their end; those that do not end as the run in ``whole`` did, and how they differ."""
    groups: dict[Path, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.folder, []).append(case)
    found = []
    for folder, code in finish(laboratory, groups):
        wrong = [f"exit code {code}: {said(folder)[-500:]}"] if code else different(folder, reference)
        more = max(case.measured for case in groups[folder]) + _measured(folder) - _measured(whole)
        wrong += [f"{more} timings were taken again"] if more > 1 else []  # the one that was not written down yet
        found += [f"{case}: {'; '.join(wrong)}" for case in groups[folder] if wrong]
        if not wrong:
            shutil.rmtree(folder)
    return found


def _measured(folder: Path) -> int:
    return int(beside(folder, "measured").read_text())


class _Recorder:
    """At every instant of a run: forks of it that stop there."""

    def __init__(self, root: Path, folder: Path, ways: Ways) -> None:
        self.root, self.folder, self.ways = root, folder, ways
        self.count, self.at_work, self.full = 0, True, False
        self.copies: dict[tuple[str, ...], Path] = {}

    def __call__(self, operation: Operation) -> None:
        if self.full and operation.name in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)
        if not self.at_work:
            return
        self.at_work = False
        self.count += 1
        for how in self.ways(operation):
            if self._stop(operation, how):
                return  # this is the fork, which goes on until it heeds what has come to it
        self.at_work = True

    def _stop(self, operation: Operation, how: str) -> bool:
        """Fork, and stop the fork; whether this is it, after all."""
        alone = () if how == "SIGKILL" else (how, str(self.count))
        copy = self.copies.setdefault((digest(self.root), *alone), self.folder / f"{len(self.copies):05}")
        process = os.fork()
        if process:
            row = {"number": self.count, "how": how, "where": str(operation), "folder": copy.name}
            row |= {"measured": len(MEASURED), "status": ended(process)}
            with (self.folder / "cases.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            return False
        signal.alarm(60)
        if not copy.exists():
            shutil.copytree(self.root, copy)
        os.chdir(copy)
        say_to(copy)
        if how in ("torn", FULL) and operation.content:
            operation.tear(copy)
        if how == FULL:
            self.full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)
        os.kill(os.getpid(), getattr(signal, how, signal.SIGKILL))
        return True


def kill_itself(laboratory: Laboratory, folder: Path, number: int) -> str:
    """Run in ``folder`` up to the operation of that number, where this very process is killed; says where that was."""
    operations: list[Operation] = []

    def seen(operation: Operation) -> None:
        operations.append(operation)
        if len(operations) == number:
            beside(folder, "where").write_text(str(operation))
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        with watching(seen):
            return laboratory.program(folder, number)

    assert ended(forked(work)) == -signal.SIGKILL
    return beside(folder, "where").read_text()


def watched(laboratory: Laboratory, folder: Path) -> list[str]:
    """Every operation below the folder of a run that goes on there to its end."""
    found: list[Operation] = []

    def work() -> int:
        with watching(found.append):
            code = laboratory.program(folder, number=0)
        beside(folder, "operations").write_text("\n".join(map(str, found)))
        return code

    assert ended(forked(work)) == 0, said(folder)
    return beside(folder, "operations").read_text().splitlines()
