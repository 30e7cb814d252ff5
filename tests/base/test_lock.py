"""One process at a time in a run folder; what killed ones leave behind is not in the way, and is tidied up."""

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nas_prune.base.errors import InUseError, StorageError
from nas_prune.base.files.folders import tidy
from nas_prune.base.files.lock import FILE, clear, locked
from nas_prune.base.files.whole import append_line, atomic_write, read_lines

HOLDER = """
import sys
from pathlib import Path
from nas_prune.base.files.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of ``tmp_path``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_who_the_first_is(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    who = f"process {holder.pid} on host {socket.gethostname()} since 20"
    with pytest.raises(InUseError, match=who) as told, locked(tmp_path):
        pass
    assert told.value.exit_code == 2
    holder.communicate()
    with locked(tmp_path):
        assert (tmp_path / FILE).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / FILE).read_text()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / FILE).read_text()


def test_what_is_left_of_a_lock_is_cleared_and_a_held_one_stays(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    clear(tmp_path)
    assert str(holder.pid) in (tmp_path / FILE).read_text()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_neither_keeps_nor_loses_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        refused = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert "InUseError" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout == "held\n"


def test_what_killed_writers_left_is_removed_or_put_back(tmp_path: Path) -> None:
    for name in (".results.json.123.tmp", "sub/.a.ckpt.9.tmp", ".derived.tmp/model.safetensors", "kept.tmp", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("torn")
    for name in (".derived.previous/config.json", ".finetuned.previous/config.json", "finetuned/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    tidy(tmp_path)
    left = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "derived/config.json": ".derived.previous/config.json",
        "finetuned/config.json": "finetuned/config.json",
        "kept.tmp": "torn",
        ".hidden": "torn",
    }


@pytest.mark.parametrize("write", [atomic_write, append_line], ids=["whole", "journal"])
def test_what_cannot_be_written_is_one_error_with_its_exit_code(tmp_path: Path, write) -> None:
    content = "{}" if write is atomic_write else {"row": 1}
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="choose a place that can be written") as told:
        write(tmp_path / "file" / "name", content)
    assert told.value.exit_code == 2


def test_a_journal_on_a_full_disk_keeps_its_whole_lines(tmp_path: Path) -> None:
    journal, former = tmp_path / "rows.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, former[1]))
    try:
        for number in range(3):
            append_line(journal, {"row": number})
        with pytest.raises(StorageError, match="make room") as told:
            append_line(journal, {"row": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert told.value.exit_code == 1
    append_line(journal, {"row": "more"})
    assert [row["row"] for row in read_lines(journal)] == [0, 1, 2, "more"]
