"""A run that is killed at any instant, and started again, ends in the bytes of one that was never stopped."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import Case, every, killed, record, unequal
from runs import Laboratory, outcome

from recipes import MACS, MILLISECONDS, OPERATORS, SHAPLEY

RECIPES = {"macs": (MACS, "run"), "ms": (MILLISECONDS, "run"), "shapley": (SHAPLEY, "run")}
RECIPES["calibrate"] = (OPERATORS, "calibrate")
LEFT = (".tmp", ".previous", ".lock")  # how names end that a finished run does not leave


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where the shortest run can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("crash"), MILLISECONDS)
    with laboratory.open():
        yield laboratory


def whole(cases: list[Case], start: Path) -> dict[str, bytes]:
    """What the run that was never stopped has come to; its forks have ended as they were stopped."""
    kills = [case for case in cases if case.how in ("SIGKILL", "torn")]
    assert [case for case in kills if case.status != -signal.SIGKILL] == []
    reference = outcome(start)
    assert [name for name in reference if name.endswith(LEFT)] == []
    return reference


def test_killed_here_and_there_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    start = laboratory.fresh("sample")
    cases = record(laboratory, start, every(41, killed))
    assert len(cases) > 5
    assert unequal(laboratory, cases, start, whole(cases, start)) == []


@pytest.mark.crash
@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_any_operation_a_run_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path, *RECIPES[name])
    with laboratory.open():
        start = laboratory.fresh("whole")
        cases = record(laboratory, start, killed)
        wrong = unequal(laboratory, cases, start, whole(cases, start))
    told(name, cases, wrong)
    between = [case.where for case in cases if case.how == "SIGKILL"]
    if laboratory.command == "run":
        assert len(between) > between.index("replace run/checkpoints/search-warmup.ckpt") > 0
    assert not wrong, "\n".join(wrong)


def told(name: str, cases: list[Case], wrong: list[str]) -> None:
    """The figures, for who runs this with ``-s``."""
    folders = len({case.folder for case in cases})
    sys.stderr.write(
        f"\n{name}: {cases[-1].number} instants, {len(cases)} stops, {folders} different folders, "
        f"{len(cases) - len(wrong)} of {len(cases)} byte-equal\n"
    )
