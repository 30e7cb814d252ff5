"""Laws of the schedules, and the numbers that their papers' code gives."""

from itertools import pairwise
from math import floor

import pytest

from nas_prune.methods.schedules import Phase, schedules

EPOCHS = 200


def counts(name: str, epoch: int, **options: object) -> tuple[int, int]:
    """Of 64 filters, 40 % of which will go: how many are closed, and how many of them for good."""
    phase = schedules[name](epoch, EPOCHS, **options)
    return floor(64 * 0.4 * phase.closed), floor(64 * 0.4 * phase.closed * phase.hard)


@pytest.mark.parametrize("name", schedules)
def test_every_schedule_ends_with_all_closed_and_never_lets_go_of_what_is_hard(name: str) -> None:
    phases = [schedules[name](epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert phases[-1].closed == 1
    assert phases[-1].soft == 0
    assert all(0 <= share <= 1 for phase in phases for share in (phase.closed, phase.hard, phase.soft))
    hard = [phase.closed * phase.hard for phase in phases]
    assert all(later >= earlier for earlier, later in pairwise(hard))
    assert schedules[name](0, 1) == schedules[name](4, 5)  # however short


@pytest.mark.parametrize(
    ("epoch", "cubic", "exponential"),
    [
        (24, (8, 2), (18, 6)),
        (49, (14, 8), (23, 13)),
        (99, (22, 19), (25, 22)),
        (149, (25, 24), (25, 25)),
        (199, (25, 25), (25, 25)),
    ],
)
def test_the_numbers_of_ghfp(epoch: int, cubic: tuple[int, int], exponential: tuple[int, int]) -> None:
    assert counts("ghfp", epoch) == cubic
    assert counts("ghfp", epoch, rise="exponential") == exponential


@pytest.mark.parametrize(("passed", "closed"), [(0, 0), (50, 0), (100, 19 / 27), (125, 7 / 8), (140, 0.936), (200, 1)])
def test_the_cubic_of_zhu_and_gupta_begins_late_and_is_known_between_epochs(passed: float, closed: float) -> None:
    assert schedules["gradual"](passed - 1, EPOCHS, begin=0.25).closed == pytest.approx(closed)
    around = [schedules["gradual"](passed + step - 1, EPOCHS, begin=0.25).closed for step in (-0.5, 0, 0.5)]
    assert around == sorted(around)


@pytest.mark.parametrize("ratio", [0.5, 0.1, 1.0])
def test_the_limits_of_halp_fall_by_one_factor(ratio: float) -> None:
    dense, steps = 40.0, 30
    closed = [schedules["exponential"](step, steps, ratio=ratio).closed for step in range(-1, steps)]
    limits = [dense - share * (dense - ratio * dense) for share in closed]
    assert limits == pytest.approx([dense ** (1 - t / steps) * (ratio * dense) ** (t / steps) for t in range(31)])
    assert closed == sorted(closed)
    assert {schedules["exponential"](step, steps, ratio=ratio).hard for step in range(steps)} == {1.0}


def test_three_quarters_of_an_exponential_rise_are_done_after_an_eighth() -> None:
    assert schedules["asfp"](EPOCHS // 8, EPOCHS).closed == pytest.approx(0.75)
    assert schedules["sfp"](0, EPOCHS) == Phase(1, 0)
    assert schedules["hfp"](0, EPOCHS) == Phase(1, 1)
    assert schedules["srfp"](0, EPOCHS, start=1.0).soft == 1
    assert schedules["srfp"](EPOCHS - 21, EPOCHS, start=1.0).soft == pytest.approx(1e-5 ** (179 / 200), rel=1e-3)
    assert schedules["srfp"](180, EPOCHS, start=1.0).soft == 0
