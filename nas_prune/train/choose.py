"""Meet the budget on the measurement, not on the prediction: select, derive, measure, adjust, again.

The predictor says which architecture; the device says how long it really takes. After every round the limit given to
the selector moves by the ratio of target and measurement. The slowest architecture that is within the target wins.

Who stops at the first timing that fits chooses lucky timings: while the mean fits, it is taken again, until the mean is
known to 1 % (its standard error), five times at most. What counts is the mean plus its standard error: an architecture
whose mean just fits is a coin toss for whoever times it next.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from nas_prune.base.errors import BudgetError, CheckpointError, RecipeError
from nas_prune.base.files.documents import read_journal
from nas_prune.base.files.whole import append_line
from nas_prune.costs import Budget, Limits
from nas_prune.methods.selectors import Decision, Question, Selector
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.record.journals import RoundRow

LEAST, MOST = 3, 5  # timings of an architecture that fits; one that does not is timed less often
KNOWN = 0.01  # standard error of a mean that needs no further timing, as a share
LOOKS = 4  # a round that selects a known architecture again costs no measurement
FINE = 1.002  # nothing to find between two limits that are this close
ROUNDING = 1e-6  # of costs in float32
CLOSE = 0.95  # stop looking for a slower one when the best is this close below the target


@dataclass(frozen=True)
class Round:
    """One round: what the selector was asked for, what was predicted, and what was measured."""

    asked: float
    predicted: float
    measured: float
    target: float


@dataclass(frozen=True)
class Met:
    """The architecture that was chosen, and the rounds that led to it.

    ``edits``, ``pictures``: what the selector made of the weights, and what it looked at; ``short``: why it is not
    within 5 % of the target, if so; ``gates``: predicted cost of what the gates alone say; ``remark``: what the
    selector has to say of it, in a line; ``closed``: top-1 of it before anything was trained further.
    """

    arch: Arch
    edits: Mapping[str, Tensor] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    short: str | None = None
    gates: float | None = None
    remark: str = ""
    closed: float | None = None
    pictures: Mapping[str, Tensor] = field(default_factory=dict)

    def as_rows(self) -> list[dict[str, Any]]:
        """The rounds as plain data."""
        return [asdict(each) for each in self.rounds]


class _Measurements:
    """What architectures really cost, written down when it is measured: a stopped run reuses it."""

    def __init__(self, cost_of: Callable[[Arch], float], space: SearchSpace, journal: Path | None) -> None:
        self.cost_of, self.space, self.journal = cost_of, space, journal
        self.journalled: dict[tuple[int, ...], list[float]] = {}
        for row in read_journal(journal, RoundRow, CheckpointError) if journal else []:
            self.journalled.setdefault(tuple(row["key"]), []).append(float(row["measured"]))

    def __call__(self, arch: Arch, target: float) -> float:
        """The cost after as many measurements as it takes to know whether the architecture fits the target."""
        key = tuple(arch.sizes(self.space.free).values())
        journalled = self.journalled.pop(key, [])
        taken: list[float] = []
        while not taken or (fits(mean(taken), target) and not _known(taken)):
            taken.append(journalled.pop(0) if journalled else self._measured(key, arch))
        return mean(taken) + _standard_error(taken)

    def _measured(self, key: tuple[int, ...], arch: Arch) -> float:
        """One more measurement."""
        measured = self.cost_of(arch)
        if self.journal is not None:
            append_line(self.journal, {"key": key, "measured": measured})
        return measured


def fits(measured: float, target: float) -> bool:
    """Whether a cost is within the target, and close to it."""
    return CLOSE * target <= measured <= target


def _known(taken: Sequence[float]) -> bool:
    """Whether the mean is known well enough."""
    return len(taken) == MOST or (len(taken) >= LEAST and _standard_error(taken) <= KNOWN * mean(taken))


def _standard_error(taken: Sequence[float]) -> float:
    """Of the mean; zero where a single measurement cannot tell."""
    return stdev(taken) / math.sqrt(len(taken)) if len(taken) > 1 else 0.0


def meet(
    question: Question,
    select: Selector,
    cost_of: Callable[[Arch], float],
    *,
    limits: Sequence[Budget] = (),
    rounds: int = 12,
    journal: Path | None = None,
) -> Met:
    """The decision, of those that ``select`` comes to under this limit and others, whose real cost is within the limit.

    ``cost_of`` derives an architecture and measures it, in the unit of the limit; ``limits`` are held by prediction.
    Measurements are journalled: a stopped run reuses them. Raises BudgetError, with the closest figure, if no round
    met the target, and what ``select`` raises where it finds nothing at all, or has no answer before anything met it.
    """
    space, target, asked = question.space, question.limit, question.limit
    low, high = 0.0, math.inf  # what was asked for: most that measured within the target, least that measured above
    measured_cost = _Measurements(cost_of, space, journal)
    tried: dict[tuple[int, ...], tuple[Round, Decision]] = {}
    for _ in range(LOOKS * rounds):
        decided = _decided(question, asked, select, limits, (BudgetError,) * bool(tried) + (RecipeError,) * bool(low))
        if decided is None:
            break
        decision, granted = decided
        smallest, asked, arch = granted > asked, granted, decision.arch
        sizes = arch.sizes(space.free)
        key = tuple(sizes.values())
        again = key in tried
        if not again and len(tried) == rounds:
            break
        if not again:
            tried[key] = Round(asked, question.spent(sizes), measured_cost(arch, target), target), decision
        measured = tried[key][0].measured
        end = smallest if measured > target else _largest(arch, space, limits)
        low, high = (max(low, asked), high) if measured <= target else (low, min(high, asked))
        if end or fits(measured, target) or high < low * FINE:
            break
        asked = _next(asked, target / measured, (low, high), again=again)
    return _best(list(tried.values()), question, rounds)


def _largest(arch: Arch, space: SearchSpace, limits: Sequence[Budget]) -> bool:
    """Whether nothing larger is to be found: of the dense model, and of what uses one of the further limits."""
    used = float(Limits(limits)(arch.sizes(space.free)).detach()) if limits else 0.0
    return used >= CLOSE or arch == Arch.dense(space.free)


def _refuse_violated(limits: Sequence[Budget], sizes: Mapping[str, int]) -> None:
    """Raise BudgetError for a decision that is beyond one of the further limits: some selectors look at no cost."""
    most = [Budget.of((1 + ROUNDING) * each.limit, each.cost) for each in limits]
    sentences = Limits(most).violated(sizes) if most else []
    if sentences:
        raise BudgetError(
            f"what the selector has chosen is beyond budget.limits: {'; '.join(sentences)}. Raise that limit, or "
            'choose a selector that looks at costs, such as "optimal"'
        )


def _next(asked: float, wanted: float, between: tuple[float, float], *, again: bool) -> float:
    """What to ask for next. ``wanted``: the time that would be right, as a share of what was measured."""
    low, high = between
    closer = CLOSE if wanted < 1 else 1 / CLOSE  # widths are coarse: until another architecture comes
    proposal = asked * (closer if again else 0.5 * (1 + CLOSE) * wanted)
    if low < proposal < high:
        return proposal
    return low / CLOSE if high == math.inf else high * CLOSE if low == 0 else (low + high) / 2


def _decided(
    question: Question, limit: float, select: Selector, limits: Sequence[Budget], ending: tuple[type[Exception], ...]
) -> tuple[Decision, float] | None:
    """The decision within every limit as predicted, and the limit that it is within.

    Where that is predicted to be too little for the smallest architecture that the selector can make, it is that one
    all the same: only the device can tell. None for an error that is an ``ending``, as what was found before counts;
    other errors are raised.
    """
    joint = Limits([Budget.of(limit, question.cost), *limits])
    try:
        decision = select(question.within(1.0, joint) if limits else question.within(limit))
        _refuse_violated(limits, decision.arch.sizes(question.space.free))
        return decision, limit
    except (BudgetError, RecipeError) as error:
        smallest = error.smallest if isinstance(error, BudgetError) else None
        if smallest is not None and not (limits and Limits(limits).violated(smallest)):
            return Decision(best_units(question.scores, smallest)), question.spent(smallest)
        if not isinstance(error, ending):
            raise
        return None


def _best(tried: list[tuple[Round, Decision]], question: Question, most: int) -> Met:
    """The slowest architecture within the target. ``most``: so many rounds were allowed."""
    within = [(step, decision) for step, decision in tried if step.measured <= step.target]
    if not within:
        closest = min(step.measured for step, _ in tried)
        smallest = min((step for step, _ in tried), key=lambda step: step.predicted).measured
        unit, keys = question.cost.unit, ["budget.rounds"] * (len(tried) == most) + ["budget.target"]
        raise BudgetError(
            f"networks derived and measured: {len(tried)}; the closest is {closest:.4g} {unit}, the smallest "
            f"{smallest:.4g} {unit}; the target is {question.limit:.4g} {unit}: raise {' or '.join(keys)}, or allow "
            "smaller widths"
        )
    step, decision = max(within, key=lambda pair: pair[0].measured)
    rounds = [each for each, _ in tried]
    short, remark, pictures = _short(step, rounds), decision.remark, decision.pictures
    return Met(decision.arch, decision.edits, rounds, short, remark=remark, pictures=pictures)


def _short(best: Round, tried: list[Round]) -> str | None:
    """Why nothing closer to the target was found, if the best is more than 5 % below it."""
    if best.measured >= CLOSE * best.target:
        return None
    shares = [each.measured / each.target for each in tried]
    above = [share for share in shares if share > 1]
    following = f", the next one {100 * (min(above) - 1):.2g} % above" if above else ""
    below = 100 * (1 - best.measured / best.target)
    return f"of {len(tried)} measured architectures the closest within it is {below:.2g} % below{following}"
