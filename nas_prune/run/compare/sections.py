"""A comparison put together: for each target the rows of every method, and what makes them unlike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from nas_prune.run.compare.cells import DENSE, Row
from nas_prune.run.compare.plan import Plan
from nas_prune.run.promise import DISTURBED

COLUMNS = (
    *("method", "as derived, %", "top-1, %", "to control", "of limit", "latency", "MACs"),
    *("training, s", "choosing, s", "epochs", "seeds"),
)
LONG = 0.25  # dense epochs of choosing beyond what controls had more
FAR = 0.95  # of the limit: what costs less had less to work with


@dataclass(frozen=True)
class Section:
    """One target: the rows of each method that came to a result, the best one first, and the best control.

    ``title``: the ``target`` and its cost; ``allowance``: epochs that controls had more; ``controls``: their names.
    """

    target: str
    title: str
    made: Mapping[str, Sequence[Row]]
    controls: Sequence[str]
    seeds: int
    lost: Sequence[Row]
    allowance: int

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table, method by method."""
        control = next(iter(self.controls), "")
        beside = {row.seed: row.top1 for row in self.made.get(control, ())}
        for name, rows in self.made.items():
            paired = [row.top1 - beside[row.seed] for row in rows if row.seed in beside]  # type: ignore[operator]
            more = spread(paired, sign="+") if paired and name != control else ""
            shares = [_share(getattr(row, cost) for row in rows) for cost in ("of_limit", "latency", "macs")]
            ran = f"{len(rows)}" if len(rows) == self.seeds else f"{len(rows)} of {self.seeds}"
            accuracies = [spread([float(getattr(row, key) or 0) for row in rows]) for key in ("derived", "top1")]
            spent = [f"{mean(getattr(row, key) for row in rows):.0f}" for key in ("seconds", "scored")]
            yield (name, *accuracies, more, *shares, *spent, f"{mean(row.epochs for row in rows):.3g}", ran)

    def remarks(self) -> Iterator[str]:
        """What makes rows unlike: a choice that took long, costs far from the limit, a busy machine; what failed."""
        for name, epochs in self._costly().items():
            yield f"Choosing with {name} took as long as {epochs:.1f} dense epochs; controls had {self.allowance} more."
        shares = {name: [row.of_limit for row in rows if row.of_limit] for name, rows in self.made.items()}
        far = {name: mean(own) for name, own in shares.items() if own and mean(own) < FAR}
        if far:
            told = ", ".join(f"{name} ({share:.2f}x)" for name, share in far.items())
            yield f"These cost more than 5 % less than the limit allows, which is to their disadvantage: {told}."
        missed = [row for rows in self.made.values() for row in rows if row.status == "missed"]
        if missed:
            yield f"Above the limit: {'; '.join(f'{row.method}, seed {row.seed}' for row in missed)}."
        disturbed = [name for name, rows in self.made.items() if any(row.spread > DISTURBED for row in rows)]
        if disturbed:
            names = ", ".join(disturbed)
            yield f"The machine was disturbed while these were timed, whose latencies may be wrong: {names}."
        for row in self.lost:
            yield f"No result of {row.method}, seed {row.seed}: {row.message or row.status}"

    def _costly(self) -> dict[str, float]:
        """Methods whose choice took longer than what controls had more, and how many dense epochs it took."""
        dense = [row.seconds / row.epochs for row in self.made.get(DENSE, ()) if row.epochs and row.seconds]
        if not dense:
            return {}
        others = {name: rows for name, rows in self.made.items() if name not in self.controls}
        took = {name: mean(row.scored for row in rows) / mean(dense) for name, rows in others.items()}
        return {name: epochs for name, epochs in took.items() if epochs > self.allowance + LONG}


def sections(rows: Sequence[Row], plan: Plan) -> list[Section]:
    """A section for each target, in the order in which they were run; the dense network is in all of them."""
    found, dense = [], [row for row in rows if row.method == DENSE]
    for target in dict.fromkeys(row.target for row in rows if row.target):
        here = [*(row for row in rows if row.target == target), *dense]
        made: dict[str, list[Row]] = {}
        for row in here:
            if row.top1 is not None:
                made.setdefault(row.method, []).append(row)
        best_first = sorted(made, key=lambda name: -mean(float(row.top1 or 0) for row in made[name]))
        controls = [name for name in best_first if name in plan.methods and plan.methods[name].control]
        seeds, lost = len({row.seed for row in here}), [row for row in here if row.top1 is None]
        ordered = {name: made[name] for name in best_first}
        title = _title(target, plan.base.budget.cost)
        found.append(Section(target, title, ordered, controls, seeds, lost, plan.allowance))
    return found


def _title(target: str, cost: str) -> str:
    """What a target is, in words."""
    words = {"macs": "MACs", "params": "parameters"}.get(cost, cost)
    return f"{target} of the dense {words}" if target.endswith("x") else f"{words} of at most {target}"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    around = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{around}"


def _share(values: Iterable[float | None]) -> str:
    """The mean of shares; a dash where one is not known."""
    known = list(values)
    return f"{mean(value for value in known if value):.3f}x" if all(known) else "—"
