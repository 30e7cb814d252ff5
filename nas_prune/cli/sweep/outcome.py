"""What a run of a sweep has come to, read from its folder."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import read_document
from nas_prune.base.files.whole import read_lines
from nas_prune.cli.sweep.file import SCORE, Goal
from nas_prune.run.files import Seconds
from nas_prune.run.result_files import InfeasibleFile, ResultsFile

Kept = ResultsFile | InfeasibleFile
WAYS: dict[Goal, int] = {"maximize": 1, "minimize": -1}


@dataclass(frozen=True)
class Outcome:
    """A run: ``status`` is met, missed or infeasible; figures are those of the fine-tuned model."""

    run: str
    values: Mapping[str, Any]
    state: str
    seconds: float = 0.0
    message: str = ""
    status: str | None = None
    score: float | None = None
    top1: float | None = None
    measured_ms: float | None = None
    macs: int | None = None
    cost: str = "latency"

    @property
    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "values": dict(self.values)}


def results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that came to its end; None where there are none yet."""
    path = folder / "results.json"
    if not path.exists():
        return None
    known: dict[str, Any] = read_document(path, Kept, CheckpointError)
    return known


def spent(folder: Path) -> float:
    """Seconds that the steps of a run have taken, all attempts together."""
    path = folder / "seconds.json"
    return sum(read_document(path, Seconds, CheckpointError).values()) if path.exists() else 0.0


def scores(folder: Path, metric: str = SCORE) -> list[float]:
    """The rows of metrics.jsonl that have a score, in order; it is a copy of what W&B is sent."""
    rows = read_lines(folder / "metrics.jsonl", CheckpointError)
    return [float(row[metric]) for row in rows if isinstance(row.get(metric), int | float)]


def figures(folder: Path, metric: str = SCORE) -> dict[str, Any]:
    """What there is to tell of a run: status, score and the figures of its model.

    The score is the last one, which is that of the model that was saved; without any, where that is what is optimised,
    top-1 if the budget was met.
    """
    known, told = results(folder), scores(folder, metric)
    if known is None or known["status"] == "infeasible":
        return {"status": known and known["status"], "score": told[-1] if told and known is None else None}
    tuned = known["finetuned"]
    fallback = tuned["top1"] if known["status"] == "met" and metric == SCORE else None
    return {
        "status": known["status"],
        "score": told[-1] if told else fallback,
        **{name: tuned[name] for name in ("top1", "measured_ms", "macs")},
        "cost": (known.get("budget") or {}).get("cost", "latency"),
    }


def survivors(found: Iterable[Outcome]) -> list[Outcome]:
    """The runs that no other one beats: none is as accurate and as cheap, and better in one of the two."""
    placed = [each for each in found if place(each) is not None]
    return [each for each in placed if not any(_beats(other, each) for other in placed)]


def place(each: Outcome) -> tuple[float, float] | None:
    """Where a run stands in the chart: its cost, and its top-1."""
    cost = each.macs if each.cost == "macs" else each.measured_ms
    return None if cost is None or each.top1 is None else (float(cost), each.top1)


def best(found: Iterable[Outcome], goal: Goal = "maximize") -> Outcome | None:
    """Of the runs that met their budget, the one of the best score."""
    met, way = [each for each in found if each.status == "met" and each.state == "finished"], WAYS[goal]
    return max(
        met, key=lambda each: (each.score is not None, way * (each.score or 0.0), each.top1 or 0.0), default=None
    )


def _beats(one: Outcome, other: Outcome) -> bool:
    first, second = place(one), place(other)
    if first is None or second is None:
        return False
    return first[0] <= second[0] and first[1] >= second[1] and first != second
