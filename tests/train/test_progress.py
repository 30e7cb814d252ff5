"""Progress: bars on a terminal; elsewhere at most a line per tenth of the work, with the time that is left."""

import io
import re

import pytest
from rich.console import Console

from nas_prune.train.record import progress
from nas_prune.train.record.progress import Bars


def told(work, *, terminal: bool = False) -> list[str]:
    """The lines of what a piece of work says."""
    into = io.StringIO()
    with Bars(Console(file=into, force_terminal=terminal, width=60)) as bars:
        work(bars)
    return into.getvalue().splitlines()


@pytest.mark.parametrize(("steps", "lines"), [(1, 1), (7, 7), (10, 10), (1000, 10)])
def test_without_a_terminal_work_says_a_line_per_tenth(steps: int, lines: int) -> None:
    found = told(lambda bars: list(bars.follow(range(steps), "timing sub-networks")))
    assert len(found) == lines
    assert all(
        re.search(r"^timing sub-networks: \d+ of \d+ \(\d+ %\), \d:\d\d:\d\d left$", line) for line in found[:-1]
    )
    assert re.search(rf"^timing sub-networks: {steps} of {steps} \(100 %\) in \d:\d\d:\d\d$", found[-1])


def test_training_says_a_line_per_epoch_and_a_resumed_one_goes_on_there() -> None:
    def train(bars: Bars) -> None:
        bar = bars.bar("dense", 4 * 25, 2 * 25, lines=4)
        for step in range(50):
            bar.advance(f"epoch {step // 25 + 3}, loss 0.5")

    assert [line.split(",")[0] for line in told(train)] == [
        "dense: 75 of 100 (75 %)",
        "dense: 100 of 100 (100 %) in 0:00:00",
    ]
    assert told(train)[0].endswith("left, epoch 3, loss 0.5")


def test_the_time_that_is_left_is_that_of_the_steps_that_were_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))

    def work(bars: Bars) -> None:
        bar = bars.bar("joint", 10, 6)
        bar.advance()
        bar.advance()

    assert told(work) == ["joint: 7 of 10 (70 %), 0:00:30 left", "joint: 8 of 10 (80 %), 0:00:20 left"]


def test_work_of_unknown_length_says_how_much_it_was() -> None:
    def work(bars: Bars) -> None:
        bar = bars.bar("forward passes of taylor", None)
        bar.advance()
        bar.advance()
        bar.end()

    assert told(work) == ["forward passes of taylor: 2 in 0:00:00"]


def test_words_stay_in_one_line_and_as_they_are() -> None:
    words = "calibration: [bold]/a/" + "long/" * 40
    assert told(lambda bars: bars.say(words)) == [words]


def test_a_terminal_gets_a_bar_and_a_quiet_console_nothing() -> None:
    drawn = "\n".join(told(lambda bars: list(bars.follow(range(20), "timing")), terminal=True))
    assert "━" in drawn
    assert "20/20" in drawn
    into = io.StringIO()
    with Bars(Console(file=into, quiet=True)) as bars:
        assert list(bars.follow(range(3), "timing")) == [0, 1, 2]
    assert into.getvalue() == ""
