"""Was the promise kept? What was asked for beside what the derived model really costs, and what has to be said first.

A run knows one duration of the dense model: the median of its final timing, in which all its models took turns. Every
other duration is a share of it, as timed in turn, so that figures of one run can be compared with each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nas_prune.costs import Budget

Status = Literal["met", "missed", "infeasible"]
NOISE = 1.03  # a timing repeats to a few percent
LOST = 0.10  # share of the dense accuracy, the loss of which is said before any speed
CHANCE = 1.5  # times the accuracy of guessing: no better than that is said before any speed
LEFT = 1.05  # times the limit at which gates may end: the selection closes what is left, and that is not trained for
BETTER = 0.5  # points of top-1 by which a pupil must be better than its teacher before that is said
DISTURBED = 0.05  # spread of a timing as a share of its median, beyond which a machine was disturbed
TIMED = ("dense", "derived", "finetuned")  # the models of a run that are timed
UNTRAINED = "what is kept is chosen by random weights: dense.epochs is 0, and the model starts from no trained ones"


@dataclass(frozen=True)
class Promise:
    """A budget and what was reached, in the same unit."""

    limit: float
    reached: float
    unit: str

    @property
    def status(self) -> Status:
        """Met, within 3 % where it was timed, or missed."""
        return "met" if self.reached <= self.limit * (NOISE if self.unit == "ms" else 1.0) else "missed"


def promised(budget: "Budget", counted: float, dense_ms: float, share: float) -> Promise:
    """What was reached against the budget. ``counted``: the exact cost in the unit of the budget, where it is not time;
    ``share``: of ``dense_ms``, which a relative latency target is relative to as well."""
    if budget.cost.unit != "ms":
        return Promise(budget.limit, counted, budget.cost.unit)
    limit = budget.limit / float(budget.cost({}).detach()) * dense_ms if budget.relative else budget.limit
    return Promise(limit, share * dense_ms, "ms")


def cautions(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any other figure, one sentence each, the worst first."""
    found = [_accuracy(results), _untrained(results), _closed_at_once(results), _taught(results), _disturbed(results)]
    return [sentence for sentence in found if sentence]


def _accuracy(results: Mapping[str, Any]) -> str:
    dense, small, classes = results["dense"]["top1"], results["finetuned"]["top1"], results["classes"]
    guessed = 100 / classes
    if small <= CHANCE * guessed and (dense is None or dense > CHANCE * guessed):
        return f"the derived model guesses: top-1 is {small:.1f} %, chance among {classes} classes is {guessed:.1f} %"
    lost = 1 - small / dense if dense else 0.0  # nothing is known to be lost where the dense model was never trained
    return f"top-1 fell from {dense:.1f} to {small:.1f} %: {100 * lost:.0f} % of it is lost" if lost > LOST else ""


def _untrained(results: Mapping[str, Any]) -> str:
    if results["trained"]:
        return ""
    return UNTRAINED


def _closed_at_once(results: Mapping[str, Any]) -> str:
    gates = results.get("gates")
    if gates is None or gates["ended"] <= LEFT * gates["limit"]:
        return ""
    return (
        f"the gates ended at {gates['ended'] / gates['dense']:.2f}x of the dense model (predicted), the target is "
        f"{gates['limit'] / gates['dense']:.2f}x: the selection closed the rest at once. Search for longer "
        f"(search.joint), or raise search.gate_lr or the budget penalty's alpha"
    )


def _taught(results: Mapping[str, Any]) -> str:
    dense, small = results["dense"]["top1"], results["finetuned"]["top1"]
    if not results.get("taught") or dense is None or small <= dense + BETTER:
        return ""
    return (
        f"the teacher knows less than its pupil: top-1 is {dense:.1f} and {small:.1f} %. Try without it "
        "(finetune.distill=0, search.distill=0), or train the dense model for longer"
    )


def _disturbed(results: Mapping[str, Any]) -> str:
    models = {name: results[name] for name in TIMED}
    worst = max(models, key=lambda name: spread(models[name]))
    far = 100 * spread(models[worst])
    if not disturbed(models[worst]):
        return ""
    return (
        f"the machine was disturbed while the models were timed: calls of the {worst} model spread by ±{far:.0f} %. "
        "Stop what else runs, and time them again: `nas-prune evaluate RUN --again`"
    )


def disturbed(*models: Mapping[str, Any]) -> bool:
    """Whether the machine was disturbed while one of these models was timed."""
    return any(spread(model) > DISTURBED for model in models)


def spread(model: Mapping[str, Any]) -> float:
    """How far calls of a model spread, as a share of their median; zero for one that was not timed."""
    median = model.get("measured_ms")
    return float(model.get("measured_ms_spread") or 0.0) / median if median else 0.0
