"""Full disks, short files, and folders that cannot be written to: one message, and nothing is lost."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import laws
import pytest
import rooms
from cases import watched
from runs import Laboratory, beside, different, digest, ended, outcome, said

from recipes import MILLISECONDS

pytestmark = pytest.mark.crash
mounts = pytest.mark.skipif(bool(why := rooms.refused()), reason=why)
SHARES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Where the shortest run can be started."""
    laboratory = Laboratory(tmp_path_factory.mktemp("rooms"), MILLISECONDS)
    with laboratory.open():
        yield laboratory


@pytest.fixture(scope="module")
def whole(laboratory: Laboratory) -> Path:
    """A finished run."""
    folder = laboratory.fresh("whole")
    assert ended(laboratory.start(folder)) == 0
    return folder


def test_a_disk_that_becomes_full(laboratory: Laboratory) -> None:
    cases, wrong = laws.full_anywhere(laboratory, "full")
    laws.told("full disk", cases, wrong)
    assert wrong == []


@mounts
@pytest.mark.parametrize("share", SHARES)
def test_a_small_disk(laboratory: Laboratory, whole: Path, share: float) -> None:
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    folder = laboratory.folder / f"disk-{share}"
    folder.mkdir()
    assert laws.in_a_small_disk(laboratory, folder, int(share * size), whole) == []


@pytest.mark.parametrize("share", SHARES)
def test_files_that_may_not_be_long(laboratory: Laboratory, whole: Path, share: float) -> None:
    longest = max(path.stat().st_size for path in whole.rglob("*"))
    folder = laboratory.fresh(f"short-{share}")
    assert laws.with_short_files(laboratory, folder, int(share * longest)) in (1, 2)
    assert laws.one_message(said(folder)), said(folder)
    assert ended(laboratory.start(folder)) == 0
    assert different(folder, outcome(whole)) == []


@mounts
@pytest.mark.parametrize("words", [(), ("evaluate", "run")])
def test_a_finished_run_is_read_where_nothing_can_be_written(
    laboratory: Laboratory, whole: Path, words: tuple[str, ...]
) -> None:
    folder = shutil.copytree(whole, beside(whole, "-".join(["read", *words])))
    assert laws.read_only(laboratory, folder, words) == 0, said(folder)
    assert "fine-tuned" in said(folder)
    assert digest(folder) == digest(whole)


def test_a_finished_run_is_read_without_a_write(laboratory: Laboratory, whole: Path) -> None:
    folder = shutil.copytree(whole, beside(whole, "watched"))
    assert watched(laboratory, folder) == []


@mounts
def test_a_run_that_is_not_finished_says_so_where_nothing_can_be_written(laboratory: Laboratory, whole: Path) -> None:
    folder = shutil.copytree(whole, beside(whole, "unfinished"))
    (folder / "run" / "results.json").unlink()
    before = digest(folder)
    assert laws.read_only(laboratory, folder) == 2, said(folder)
    assert laws.one_message(said(folder)), said(folder)
    assert digest(folder) == before


def test_whatever_is_deleted_is_made_again(laboratory: Laboratory, whole: Path) -> None:
    names = {str(path.relative_to(whole)) for path in (whole / "run").rglob("*")}
    names -= {"run/metrics.jsonl", "run/calibration", "run/calibration/timings.jsonl"}  # what was seen, once
    wrong = laws.lost(laboratory, whole, sorted(names))
    assert not wrong, "\n".join(wrong)
