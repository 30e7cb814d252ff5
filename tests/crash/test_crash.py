"""A run that is stopped at any instant, and started again, ends in the bytes of one that was never stopped."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import laws
import pytest
import runs
from cases import every, killed, record
from runs import Laboratory, age, different, outcome

from recipes import MACS, MILLISECONDS, ONCE, OPERATORS, SHAPLEY

pytestmark = pytest.mark.crash
RECIPES = {"macs": MACS, "ms": MILLISECONDS, "shapley": SHAPLEY}


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where a run with one epoch of every stage can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("once"), ONCE)
    with laboratory.open():
        yield laboratory


@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_any_operation(name: str, tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path, RECIPES[name])
    with laboratory.open():
        cases, wrong = laws.killed_anywhere(laboratory, "whole")
    laws.told(f"killed, {name}", cases, wrong)
    assert not wrong, "\n".join(wrong)
    if "dense" in laboratory.recipe:
        first = {case.where: case.number for case in reversed(cases)}
        trained, searched = (f"replace run/checkpoints/{stage}.ckpt" for stage in ("dense", "search-warmup"))
        assert first[searched] - first[trained] > 3  # kills in between, when the search has no checkpoint yet


def test_killed_at_any_operation_of_a_calibration(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path, OPERATORS, "calibrate")
    with laboratory.open():
        cases, wrong = laws.killed_anywhere(laboratory, "whole")
    laws.told("killed, calibrate", cases, wrong)
    assert not wrong, "\n".join(wrong)


def test_killed_again_while_it_goes_on(laboratory: Laboratory) -> None:
    cases, wrong = laws.killed_twice(laboratory, "twice", step=59)
    laws.told("killed twice", cases, wrong)
    assert not wrong, "\n".join(wrong)


def test_killed_itself_instead_of_a_fork(laboratory: Laboratory) -> None:
    assert laws.killed_itself(laboratory, "itself", range(3, 240, 33)) == []


def test_asked_to_stop_at_any_step(laboratory: Laboratory) -> None:
    cases, wrong = laws.asked_anywhere(laboratory, "asked")
    laws.told("SIGTERM and SIGINT", cases, wrong)
    assert not wrong, "\n".join(wrong)


def test_in_another_interpreter(laboratory: Laboratory) -> None:
    """With other hashes, another random state, nothing imported and nothing traced before."""
    start = laboratory.fresh("interpreters")
    cases = record(laboratory, start, every(101, killed))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for case in cases:
        age(case.folder)
        subprocess.run([sys.executable, runs.__file__, str(case.folder)], check=True, timeout=300, env=environment)
    reference = outcome(start)
    assert [f"{case}: {found}" for case in cases if (found := different(case.folder, reference))] == []


@pytest.mark.parametrize("attempt", range(20))
def test_two_processes_in_one_folder(laboratory: Laboratory, attempt: int) -> None:
    folder = laboratory.fresh(f"two-{attempt}")
    laws.contend(laboratory, folder, delay=0.02 * attempt)
    reference = outcome(folder)
    assert [name for name in reference if name.endswith(laws.LEFT)] == []
