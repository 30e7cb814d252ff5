"""A run that is stopped ends in the bytes of one that was not: a sample of what ``-m crash`` tries everywhere."""

from collections.abc import Iterator

import laws
import pytest
from runs import Laboratory

from recipes import SAMPLE


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where a run of the fewest stages can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("sample"), SAMPLE)
    with laboratory.open():
        yield laboratory


@pytest.mark.crash
def test_stopped_here_and_there_in_every_way_a_run_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    cases, wrong = laws.stopped_in_turn(laboratory, "whole", step=83)
    assert len({case.how for case in cases}) >= 3
    assert wrong == []
    deleted = ["run/derived", "run/checkpoints/search-joint.ckpt"]
    assert laws.lost(laboratory, laboratory.folder / "whole", deleted) == []


def test_of_two_processes_in_one_folder_one_goes_on(laboratory: Laboratory) -> None:
    assert len(set(laws.contend(laboratory, laboratory.fresh("two"), delay=0.0))) == 2
