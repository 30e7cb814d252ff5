"""Laws of files that must survive a crash: whole or absent, unchanged or refused, and a polite stop in between."""

import math
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_prune.base.errors import ArtifactError, CheckpointError, StorageError
from nas_prune.base.files.whole import append_line, atomic_write, read_json, read_lines, write_json
from nas_prune.train.data.order import drawing
from nas_prune.train.record.checkpoint import load, save
from nas_prune.train.record.stage_file import Length
from nas_prune.train.stop_signals import stop_signals


def training_state() -> dict[str, object]:
    """A model and an optimizer after one step, as a stage saves them."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, "order": [3, 1]}


def draws() -> tuple[float, ...]:
    """One number from every generator (two kinds from those that cache a second Gaussian)."""
    return random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(()).item()


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    state = training_state()
    save(tmp_path / "deep" / "stage.pt", state)
    torch.testing.assert_close(load(tmp_path / "deep" / "stage.pt"), state, rtol=0, atol=0)


def test_what_is_drawn_depends_on_its_name_alone_and_every_generator_goes_on_where_it_was() -> None:
    def named(*parts: int | str) -> tuple[float, ...]:
        with drawing(*parts):
            return draws()

    draws()  # leaves a cached Gaussian behind in Python and in numpy
    known = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draws()
    random.setstate(known[0])
    np.random.set_state(known[1])
    torch.set_rng_state(known[2])
    first = named(0, "dense", 3)
    assert draws() == expected
    assert named(0, "dense", 3) == first
    others = [named(1, "dense", 3), named(0, "baseline", 3), named(0, "dense", 4)]
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))


def test_any_flipped_bit_and_any_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage.pt"
    save(path, training_state())
    content = path.read_bytes()
    spots = random.Random(0).sample(range(len(content)), 60)
    flipped = [content[:spot] + bytes([content[spot] ^ 1]) + content[spot + 1 :] for spot in spots]
    for broken in [*flipped, *(content[:spot] for spot in spots), b"", b"PK\x03\x04 another file"]:
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"stage\.pt.*delete that file to start the stage again"):
            load(path)


def test_a_missing_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt"):
        load(tmp_path / "absent.pt")


def test_what_could_not_be_read_back_is_refused_when_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Path"):
        save(tmp_path / "stage.pt", {"folder": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    atomic_write(path, "old")

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"file\.txt: no space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_where_a_number_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": math.nan, "list": [math.inf, 1.5], "none": None})
    assert read_json(tmp_path / "a.json") == {"loss": None, "list": [None, 1.5], "none": None}


def test_broken_json_raises_the_error_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "absent.json"):
        with pytest.raises(ArtifactError, match=name):
            read_json(tmp_path / name, ArtifactError)


def test_a_journal_cut_at_any_byte_loses_only_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"row": 12}, {"row": 34, "text": "ä\n"}]
    for row in rows:
        append_line(path, row)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert read_lines(path) == rows[:whole]
        append_line(path, {"row": 56})
        assert read_lines(path) == [*rows[:whole], {"row": 56}]


def test_a_broken_line_inside_a_journal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"row": 1}\n{"ro\n{"row": 3}\n')
    with pytest.raises(ArtifactError, match=r"line 2 of .*rows\.jsonl"):
        read_lines(tmp_path / "rows.jsonl", ArtifactError)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_second_interrupt_is_immediate(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def loop() -> None:
        with stop_signals() as stop:
            assert stop.requested is None
            signal.raise_signal(number)
            assert stop.requested == number
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_signals() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, before]


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (3, 2), (2, 5)])
def test_with_another_number_of_processes_no_batch_of_an_epoch_comes_twice(before: int, now: int) -> None:
    length = Length(epochs=1, steps=60 // now, processes=now)
    for step in range(60 // before + 1):
        done = length.steps_done(step, before) * now
        assert step * before <= done < step * before + now
    assert length.steps_done(999, now) == 999, "what does not fit is refused elsewhere"
