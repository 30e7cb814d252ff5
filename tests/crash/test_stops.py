"""Signals that ask a run to stop, at every step and in every evaluation; and runs that are killed more than once."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import runs
from cases import Case, asked, every, killed, record, steps, unequal
from runs import Laboratory, different, outcome, said

from recipes import ONCE

EXIT = {"SIGTERM": -signal.SIGTERM, "SIGINT": 130}  # as the README says: 130, or the signal


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where a run with one epoch of every stage can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("stops"), ONCE)
    with laboratory.open():
        yield laboratory


def stopped(laboratory: Laboratory, name: str, step: int) -> tuple[list[Case], list[str]]:
    """Runs that were asked to stop at one instant in ``step``, and those among them that ended in other bytes."""
    start = laboratory.fresh(name)
    cases = record(laboratory, start, every(step, asked), steps)
    assert {case.how: case.status for case in cases} == EXIT
    assert [f"{case}: {case.status}" for case in cases if case.status != EXIT[case.how]] == []
    assert [str(case) for case in cases if "Traceback" in said(case.folder)] == []
    return cases, unequal(laboratory, cases, start, outcome(start))


def test_asked_to_stop_here_and_there_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    cases, wrong = stopped(laboratory, "sample", step=11)
    assert len(cases) > 4
    assert wrong == []


@pytest.mark.crash
def test_asked_to_stop_at_any_step_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    cases, wrong = stopped(laboratory, "every", step=1)
    told("SIGTERM and SIGINT", cases, wrong)
    assert not wrong, "\n".join(wrong)


@pytest.mark.crash
def test_killed_again_while_it_goes_on_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    start = laboratory.fresh("first")
    first = record(laboratory, start, every(60, killed))
    reference = outcome(start)
    second = [case for each in first for case in record(laboratory, each.folder, every(40, killed))]
    wrong = unequal(laboratory, second, start, reference)
    told("killed twice", second, wrong)
    assert not wrong, "\n".join(wrong)


@pytest.mark.crash
def test_killed_itself_a_run_leaves_what_its_forks_left(laboratory: Laboratory) -> None:
    """No fork, no copy: the process of the run is killed in its own folder."""
    start = laboratory.fresh("itself")
    cases = record(laboratory, start, every(50, killed))


@pytest.mark.crash
def test_in_another_interpreter_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    """With other hashes, another random state, nothing imported and nothing traced."""
    start = laboratory.fresh("interpreters")
    cases = record(laboratory, start, every(90, killed))
    for case in cases:
        subprocess.run([sys.executable, runs.__file__, str(case.folder)], check=True, timeout=300)
    wrong = [f"{case}: {found}" for case in cases if (found := different(case.folder, outcome(start)))]
    assert wrong == []
