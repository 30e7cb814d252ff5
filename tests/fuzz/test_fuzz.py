"""No file is believed unread: of every kind of file, mutants are refused in one short message, or whatever is believed
of them holds.

The figures of docs/reliability.md come from ``pytest tests/fuzz -m fuzz -rP``.
"""

import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from readers import IN_A_REPORT, KINDS, traced

from nas_prune.base.errors import NasPruneError
from nas_prune.run.report.page import RunFolder, report

SECONDS = 1.0  # of a processor, for each file
LONGEST = 1000  # characters of a message
FEW, MANY = 200, int(os.environ.get("FUZZED_FILES", "1500"))
FEWER = {"recipe": 100, "space": 100, "checkpoint": 100, "calibrate --check": 50}
FEWER |= {"artefact config": 60, "artefact tensors": 60}  # each builds a model


def fuzz(name: str, folder: Path, count: int) -> Counter[str]:
    """How many mutants of a kind were refused and accepted."""
    kind, found = KINDS[name], Counter[str]()
    for number in range(count):
        path = kind.write(folder / str(number % 7), Random(f"{name} {number}"))
        start = time.process_time()
        try:
            value = kind.read(path)
        except NasPruneError as error:
            found["refused"] += 1
            message = str(error)
            assert len(message) < LONGEST, (number, message)
            assert path.name in message, (number, message)
            assert message.isprintable() or "\n" in message, (number, message)
        except BaseException as error:
            raise AssertionError(f"mutant {number} raised {type(error).__name__}: {path}") from error
        else:
            found["accepted"] += 1
            try:
                kind.holds(value)
            except AssertionError as error:
                raise AssertionError(f"mutant {number} was believed: {path}") from error
        spent = time.process_time() - start
        assert spent < SECONDS, (number, spent)
    print(f"| {name} | {count} | {found['refused']} | {found['accepted']} |")
    return found


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """What is made once is not part of the time of a file."""
    traced()


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_believed(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.holds(kind.read(kind.write(tmp_path, None)))
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_no_file_is_believed_unread(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, FEWER.get(name, FEW))
    assert found["refused"] > found["accepted"] / 4


@pytest.mark.fuzz
@pytest.mark.parametrize("name", KINDS)
def test_none_of_many_files_is_believed_unread(name: str, tmp_path: Path) -> None:
    assert sum(fuzz(name, tmp_path, MANY).values()) == MANY


@pytest.mark.fuzz
@pytest.mark.parametrize("name", IN_A_REPORT)
def test_a_report_is_made_of_whatever_is_believed(name: str, tmp_path: Path) -> None:
    kind, folder, pages = KINDS[name], tmp_path / "run", 0
    for number in range(300):
        kind.write(folder, Random(f"{name} {number}"))
        (folder / "recipe.yaml").touch()
        try:
            RunFolder.read(folder)
        except NasPruneError:
            continue
        pages += report(folder).is_file()
        if pages == 30:
            break
    assert pages > 3
