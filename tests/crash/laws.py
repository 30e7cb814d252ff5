"""The laws of a run that is stopped, at one instant in ``step``: what must hold, and in which cases it does not."""

import resource
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM

import rooms
from cases import FULL, Case, anything, asked, every, in_turn, kill_itself, killed, record, steps, unequal, without_room
from runs import Laboratory, beside, different, ended, finish, forked, outcome, said

EXIT = {"SIGKILL": -SIGKILL, "torn": -SIGKILL, "SIGTERM": -SIGTERM, "SIGINT": 130, FULL: 1}  # as the README says
LEFT = (".tmp", ".previous", ".lock")  # how names end that a finished run does not leave


def killed_anywhere(laboratory: Laboratory, name: str, step: int = 1) -> tuple[list[Case], list[str]]:
    """Killed before an operation or in the middle of a write, a run ends in the bytes of one that was not."""
    start = laboratory.fresh(name)
    cases = record(laboratory, start, every(step, killed))
    reference = outcome(start)
    left = [f"{name} is left over" for name in reference if name.endswith(LEFT)]
    return cases, [*left, *misled(cases), *unequal(laboratory, cases, start, reference)]


def asked_anywhere(laboratory: Laboratory, name: str, step: int = 1) -> tuple[list[Case], list[str]]:
    """Asked to stop after a step or in an evaluation, a run says how it ended, and ends in the same bytes later."""
    start = laboratory.fresh(name)
    cases = record(laboratory, start, every(step, asked), steps)
    return cases, [*misled(cases), *unequal(laboratory, cases, start, outcome(start))]


def full_anywhere(laboratory: Laboratory, name: str, step: int = 1) -> tuple[list[Case], list[str]]:
    """A disk that is full from some operation on costs one message; with room again, a run ends in the same bytes."""
    start = laboratory.fresh(name)
    cases = record(laboratory, start, every(step, without_room))
    unsaid = [f"{case} says: {said(case.folder)[-500:]}" for case in cases if not one_message(said(case.folder))]
    return cases, [*misled(cases), *unsaid, *unequal(laboratory, cases, start, outcome(start))]


def stopped_in_turn(laboratory: Laboratory, name: str, step: int) -> tuple[list[Case], list[str]]:
    """All these ways, one after the other, at every operation, step and evaluation."""
    start = laboratory.fresh(name)
    cases = record(laboratory, start, every(step, in_turn()), anything)
    return cases, [*misled(cases), *unequal(laboratory, cases, start, outcome(start))]


def killed_twice(laboratory: Laboratory, name: str, step: int) -> tuple[list[Case], list[str]]:
    """Killed again while it goes on, a run ends in the same bytes."""
    start = laboratory.fresh(name)
    first = record(laboratory, start, every(step, killed))
    cases = [case for each in first for case in record(laboratory, each.folder, every(step, killed))]
    return cases, [*misled(cases), *unequal(laboratory, cases, start, outcome(start))]


def killed_itself(laboratory: Laboratory, name: str, numbers: Sequence[int]) -> list[str]:
    """The same without forks and copies: the very process of the run is killed, in its own folder."""
    start = laboratory.fresh(name)
    assert ended(laboratory.start(start)) == 0
    where = {}
    for number in numbers:
        folder = laboratory.fresh(f"{name}-{number}")
        where[folder] = kill_itself(laboratory, folder, number)
    return failed(laboratory, where, start)


def lost(laboratory: Laboratory, whole: Path, names: Sequence[str]) -> list[str]:
    """What is deleted from a run, with its results, is made again, the same."""
    where = {}
    for number, name in enumerate(names):
        folder = shutil.copytree(whole, beside(whole, f"without-{number}"))
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "run" / "results.json").unlink(missing_ok=True)
        where[folder] = name
    return failed(laboratory, where, whole)


def failed(laboratory: Laboratory, where: dict[Path, str], whole: Path) -> list[str]:
    """Runs that do not end as the whole one when they are started again."""
    reference, found = outcome(whole), []
    for folder, code in finish(laboratory, where):
        wrong = [f"exit code {code}: {said(folder)[-500:]}"] if code else different(folder, reference)
        found += [f"{where[folder]}: {'; '.join(wrong)}"] if wrong else []
    return found


def told(what: str, cases: Sequence[Case], wrong: Sequence[str]) -> None:
    """The figures, for who runs this with ``-s``."""
    instants, folders = len({(case.folder.parent, case.number) for case in cases}), len({case.folder for case in cases})
    sys.stderr.write(
        f"\n{what}: {instants} instants, {len(cases)} stops, {folders} different folders, "
        f"{len(cases) - len(wrong)} of {len(cases)} as the run that was never stopped\n"
    )


def misled(cases: Sequence[Case]) -> list[str]:
    """Cases whose process did not end as it was stopped."""
    return [f"{case} ended in {case.status}" for case in cases if case.status != EXIT[case.how]]


def one_message(text: str) -> bool:
    """Whether the program said what is wrong, once, without a traceback."""
    return "Traceback" not in text and sum(line.startswith("error:") for line in text.splitlines()) == 1


def contend(laboratory: Laboratory, folder: Path, delay: float) -> tuple[int, int]:
    """Start two processes in one folder, the second one so many seconds later; of those, who went on and who did not.

    Exactly one goes on; the other one ends with exit code 2 and names the process, its host, and since when.
    """
    processes = [laboratory.start(folder, 0)]
    time.sleep(delay)
    processes.append(laboratory.start(folder, 1))
    codes = {process: ended(process) for process in processes}
    assert sorted(codes.values()) == [0, 2], said(folder)
    winner, loser = sorted(codes, key=lambda process: codes[process])
    words = " ".join(said(folder).split())
    assert f"in use by process {winner} on host {socket.gethostname()} since 20" in words
    assert "Traceback" not in words
    return winner, loser


def in_a_small_disk(laboratory: Laboratory, folder: Path, size: int, whole: Path) -> list[str]:
    """A disk of so many bytes costs one message; with more room, a run ends as the whole one. What is wrong of that."""
    reference, found = outcome(whole), beside(folder, "found")

    def work() -> int:
        rooms.own_mounts()
        rooms.small(folder, size)
        shutil.copy(whole / "recipe.yaml", folder)
        codes = [ended(laboratory.start(folder))]
        unsaid = "" if one_message(said(folder)) else said(folder)
        rooms.larger(folder, 100 * size)
        codes.append(ended(laboratory.start(folder)))
        wrong = [f"exit codes {codes}, not 1 and 0: {said(folder)[-500:]}"] if codes != [1, 0] else []
        wrong += [unsaid] if unsaid else []
        found.write_text("\n".join([*wrong, *different(folder, reference)]))
        return 0

    assert ended(forked(work)) == 0, said(folder)
    return found.read_text().splitlines()


def with_short_files(laboratory: Laboratory, folder: Path, longest: int) -> int:
    """The exit code of a run that may write no file longer than that."""

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
        return laboratory.program(folder, number=0)

    return ended(forked(work))


def read_only(laboratory: Laboratory, folder: Path, words: Sequence[str] = ()) -> int:
    """The exit code of the program where nothing below the folder can be written."""

    def work() -> int:
        rooms.own_mounts()
        rooms.read_only(folder)
        return laboratory.program(folder, number=0, words=words)

    return ended(forked(work))
