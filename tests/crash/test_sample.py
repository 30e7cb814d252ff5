"""A run that is stopped ends in the bytes of one that was not: a sample of what ``-m crash`` tries everywhere."""

from collections.abc import Iterator

import laws
import pytest
from runs import Laboratory, ended

from recipes import MILLISECONDS


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where the shortest run can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("sample"), MILLISECONDS)
    with laboratory.open():
        yield laboratory


def test_killed_here_and_there(laboratory: Laboratory) -> None:
    cases, wrong = laws.killed_anywhere(laboratory, "killed", step=47)
    assert len(cases) > 4
    assert wrong == []


def test_asked_to_stop_here_and_there(laboratory: Laboratory) -> None:
    cases, wrong = laws.asked_anywhere(laboratory, "asked", step=9)
    assert {case.how for case in cases} == {"SIGTERM", "SIGINT"}
    assert wrong == []


def test_without_room_here_and_there(laboratory: Laboratory) -> None:
    cases, wrong = laws.full_anywhere(laboratory, "full", step=53)
    assert len(cases) > 1
    assert wrong == []


def test_two_processes_in_one_folder(laboratory: Laboratory) -> None:
    assert len(set(laws.contend(laboratory, laboratory.fresh("two"), delay=0.0))) == 2


def test_an_artefact_that_is_deleted_is_made_again(laboratory: Laboratory) -> None:
    start = laboratory.fresh("lost")
    assert ended(laboratory.start(start)) == 0
    assert laws.lost(laboratory, start, ["run/derived", "run/finetuned/model.safetensors"]) == []
