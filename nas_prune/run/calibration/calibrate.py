"""Calibrate: derive sub-networks for real, time them here, and let the best latency predictor learn from them.

Every sub-network is timed in turn with the dense model and recorded as a share of it, so that a machine that slows
down does not look like a slow network. Each timing is journalled when it is taken: a calibration that was stopped goes
on where it was, and one that is finished is read, not repeated.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import BudgetError, CalibrationError, one_line
from nas_prune.base.files.documents import read_journal
from nas_prune.base.files.tensors import misfit
from nas_prune.base.files.whole import append_line, write_json, write_lines
from nas_prune.base.fingerprint import fingerprint
from nas_prune.base.follow import Follow
from nas_prune.costs import (
    OperatorTable,
    PredictionError,
    Predictor,
    Ratio,
    best,
    candidates,
    measure_together,
    predictors,
)
from nas_prune.costs.timing.measure import CROWDED
from nas_prune.derivation.derive import derive
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.bench import conditions, operator_table
from nas_prune.run.calibration.facts import PREDICTOR
from nas_prune.run.calibration.sampling import sample
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.files import SampleTimed
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data.order import seeded

KNOWN = 3  # samples after which it is known what the dense model takes
CALM = 0.2  # share of the timings that are thought to be undisturbed
REPEATED = 6  # so many sub-networks are timed again at the end, and the smallest: the noise floor
ENOUGH = 12  # sub-networks for a predictor to learn from
FILE = "calibration.safetensors"
AGAIN = "delete it to have it made again"

TimePair = Callable[[Arch, Mapping[str, float]], tuple[Ratio, float]]


@dataclass(frozen=True)
class Plan:
    """The ``numbers`` of the sub-networks in the order in which they are timed, the architecture of each, and the key
    of what their timings are true of. A number that comes again is a repetition."""

    numbers: Sequence[int]
    arch_of: Callable[[int], Arch]
    here: str

    def row(self, position: int) -> dict[str, Any]:
        """What a line of the journal says beside the timing."""
        index = self.numbers[position]
        sizes = {name: len(units) for name, units in self.arch_of(index).kept.items()}
        return {"sizes": sizes, "repeat": index in self.numbers[:position], "index": index, "here": self.here}


@dataclass(frozen=True)
class Calibration:
    """A predictor, how wrong it and the others were out of sample, and what was measured.

    ``errors``: by name of the predictor, each sub-network predicted by one that had not seen it; ``interval``: 95 % of
    the chosen one's mean error; ``noise``: mean difference between two timings of one sub-network, as a share;
    ``dense_ms``, ``calm_ms``: of the dense model, in the median, and while nothing disturbed the machine.
    """

    predictor: Predictor
    name: str
    errors: Mapping[str, PredictionError]
    interval: tuple[float, float]
    noise: float
    dense_ms: float
    calm_ms: float
    smallest_ms: float

    @property
    def error(self) -> PredictionError:
        """The out-of-sample error of the chosen predictor."""
        return self.errors[self.name]


def calibrate(
    model: nn.Module,
    space: SearchSpace,
    example_inputs: Tensor,
    settings: LatencySettings,
    folder: Path,
    *,
    about: Mapping[str, Any],
    seed: int = 0,
    progress: Follow[Any] = lambda steps, _: steps,
) -> Calibration:
    """Time ``settings.samples`` sub-networks of ``model`` and fit the best predictor; all of it is kept in ``folder``.

    The first sub-network is the smallest of the space: what it takes is the least that any budget can ask for.
    ``about``: the model's name and arguments, for those that read the file elsewhere.
    """

    dense = derive(model, space.axes, Arch())  # of a choice, the first candidate alone

    def time_pair(arch: Arch, calm: Mapping[str, float]) -> tuple[Ratio, float]:
        pair = {"dense": dense, "small": derive(model, space.axes, arch)}
        how, seconds = conditions(settings), settings.seconds
        times = measure_together(pair, example_inputs, conditions=how, seconds=seconds, calm=calm)
        return times.ratio("small", "dense"), times["dense"].median_ms

    facts = here(space, example_inputs, settings, about) | {"seed": seed}
    plan = Plan(
        [*range(settings.samples), 0, *range(3, settings.samples, 4)[:REPEATED]],
        partial(sample, space, seed=seed, jitter=settings.jitter),
        calibration_file.key_of(calibration_file.decisive(facts)),
    )
    rows = _measured(plan, time_pair, folder / "timings.jsonl", progress)
    table = None
    if settings.operators:
        device = str(next(model.parameters()).device)
        table = operator_table(space, settings, device, folder / "operators.jsonl", progress)
    tensors = _fitted(space, rows, facts, settings.predictor, table)
    calibration_file.write(folder / FILE, tensors, facts)
    return adopt(folder / FILE, space, folder)


def here(
    space: SearchSpace, example_inputs: Tensor, settings: LatencySettings, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts that a latency here depends on, as plain data: model, axes, images, conditions and device.

    ``widths``: of each axis what was sampled, its least width and the step from one to the next. A predictor that
    learnt from widths of any size is far off on multiples of eight, where runtimes are fast.
    """
    return {
        "model": dict(about),
        "axes": {name: axis.size for name, axis in space.free.items()},
        "widths": {name: [space.minimum[name], axis.divisor] for name, axis in space.free.items()},
        "stripes": bool(space.axes.stripes),
        "replaced": [rule.model_dump(mode="json") for rule in space.replaced],
        "image": list(example_inputs.shape[1:]),
        "batch_size": settings.batch_size,
        "conditions": asdict(conditions(settings)),
        "device": fingerprint(example_inputs.device),
    }


def adopt(path: Path, space: SearchSpace, folder: Path) -> Calibration:
    """Read a calibration, and lay out in ``folder`` what a report shows of it."""
    tensors, facts = calibration_file.read(path, AGAIN)
    axes = {name: axis.size for name, axis in space.free.items()}
    other = sorted(name for name in {**axes, **facts["axes"]} if axes.get(name) != facts["axes"].get(name))
    if other:
        named = one_line(", ".join(other[:3]))
        raise CalibrationError(f"the calibration {path} is of other axes than the model's ({named}); {AGAIN}")
    predictor = _predictor(path, tensors, facts, space)
    errors = {name: PredictionError(**_ranked(error)) for name, error in facts["errors"].items()}
    low, high = facts["interval"]
    measured = (facts[name] for name in ("noise", "dense_ms", "calm_ms", "smallest_ms"))
    result = Calibration(predictor, facts["predictor"], errors, (low, high), *measured)
    write_lines(folder / "samples.jsonl", list(_samples(tensors, facts)))
    write_json(folder / "calibration.json", facts | {"error": asdict(result.error)} | facts["conditions"])
    return result


def _predictor(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], space: SearchSpace) -> Predictor:
    """The predictor that was fitted, once it is known to fit and to predict a time."""
    predictor = predictors[facts["predictor"]](space.axes, facts["dense_ms"], None)
    state = _under(tensors, PREDICTOR)
    problem = misfit(predictor.state_dict(), state)
    if not problem:
        predictor.load_state_dict(state)
        predictor.requires_grad_(False)
        timed = [dict(zip(facts["axes"], sizes, strict=True)) for sizes in tensors["sizes"].tolist()]
        predicted = predictor.predict(predictor.shares([{}, *timed]))
        if not bool((predicted.isfinite() & (predicted > 0)).all()):
            problem = "it predicts no time"
    if problem:
        raise CalibrationError(f"the predictor in {path} does not fit: {problem}; {AGAIN}")
    return predictor


def _ranked(error: Mapping[str, float | None]) -> dict[str, Any]:
    """The figures of an error, with NaN for a correlation that does not exist."""
    return {name: math.nan if value is None else value for name, value in error.items()}


def refuse_unreachable(calibration: Calibration, limit: float, space: SearchSpace) -> None:
    """Before any training: raise BudgetError if even the smallest sub-network measured slower than the limit."""
    if calibration.smallest_ms > limit:
        share = calibration.smallest_ms / calibration.dense_ms
        raise BudgetError(
            f"the budget of {limit:.3g} ms cannot be met: the smallest network of search space {space.name} measured "
            f"{calibration.smallest_ms:.3g} ms here ({share:.2f}x of the dense model's {calibration.dense_ms:.3g} ms). "
            f"Ask for at least {share * 1.05:.2f}x, lower `minimum` in the search space, or raise latency.batch_size"
        )


def _measured(plan: Plan, time_pair: TimePair, journal: Path, progress: Follow[int]) -> list[dict[str, Any]]:
    """Every row of the journal, the missing ones timed now."""
    rows = _checked(read_journal(journal, SampleTimed, CalibrationError), plan, journal)
    for position in progress(range(len(rows), len(plan.numbers)), "timing sub-networks"):
        arch = plan.arch_of(plan.numbers[position])
        ratio, dense_ms = time_pair(arch, {"dense": _calm_ms(rows)} if len(rows) >= KNOWN else {})
        timed = {"share": ratio.median, "spread": (ratio.high - ratio.low) / 2, "dense_ms": dense_ms}
        rows.append(plan.row(position) | timed)
        append_line(journal, rows[-1])
    return rows


def _checked(rows: list[dict[str, Any]], plan: Plan, journal: Path) -> list[dict[str, Any]]:
    """The rows of a journal, which are those of the plan as far as they go."""
    for position, row in enumerate(rows[: len(plan.numbers)]):
        if {**row, **plan.row(position)} != row:
            raise CalibrationError(
                f"line {position + 1} of {journal} is not of this calibration, or was timed elsewhere; {AGAIN}"
            )
    if len(rows) > len(plan.numbers):
        raise CalibrationError(f"{journal} has more lines than this calibration has timings; {AGAIN}")
    return rows


def _fitted(
    space: SearchSpace, rows: Sequence[dict[str, Any]], facts: dict[str, Any], name: str, table: OperatorTable | None
) -> dict[str, Tensor]:
    """The tensors of the file; what was found out is added to the facts."""
    smallest = min((row for row in rows if row["index"] == 0), key=lambda row: row["dense_ms"])["share"]
    rows = _calm(rows)
    samples = [row for row in rows if not row["repeat"]]
    sizes = torch.tensor([[row["sizes"][name] for name in facts["axes"]] for row in samples])
    measured = torch.tensor([row["share"] for row in samples])
    dense_ms = float(torch.tensor([row["dense_ms"] for row in rows]).median())
    shares = sizes / torch.tensor(list(facts["axes"].values()))
    makes = candidates(space.axes, dense_ms, table, None if name == "best" else [name])
    chosen = best(makes, shares, dense_ms * measured, generator=seeded(facts["seed"]))
    facts |= {
        "predictor": chosen.name,
        "errors": {name: asdict(error) for name, error in chosen.errors.items()},
        "interval": list(chosen.interval),
        "noise": _noise(rows),
        "dense_ms": dense_ms,
        "calm_ms": _calm_ms(rows),
        "smallest_ms": dense_ms * smallest,
    }
    state = {f"{PREDICTOR}{name}": tensor for name, tensor in chosen.predictor.state_dict().items()}
    spread = torch.tensor([row["spread"] for row in samples])
    return state | {"sizes": sizes, "share": measured, "spread": spread, "predicted_ms": chosen.predicted}


def _calm(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The rows that were timed while the machine was not crowded; the calmer half of them at least, and enough."""
    known = sorted(row["dense_ms"] for row in rows if not row["repeat"])
    least = known[max(ENOUGH, len(known) // 2) - 1]
    return [row for row in rows if row["dense_ms"] <= max(least, CROWDED * _calm_ms(rows))]


def _calm_ms(rows: Sequence[dict[str, Any]]) -> float:
    """What the dense model takes while nothing disturbs the machine."""
    return float(torch.tensor([row["dense_ms"] for row in rows]).quantile(CALM))


def _noise(rows: Sequence[dict[str, Any]]) -> float:
    """Mean difference, as a share, between two timings of the same network."""
    first = {row["index"]: row["share"] for row in rows if not row["repeat"]}
    again = [abs(row["share"] / first[row["index"]] - 1) for row in rows if row["repeat"] and row["index"] in first]
    return float(sum(again)) / max(1, len(again))


def _samples(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The timed sub-networks as rows; each is predicted by a predictor that had not seen it."""
    columns = (tensors[name].tolist() for name in ("sizes", "share", "spread", "predicted_ms"))
    for sizes, share, spread, predicted in zip(*columns, strict=True):
        named = dict(zip(facts["axes"], sizes, strict=True))
        ms = facts["dense_ms"] * share
        yield {"sizes": named, "share": share, "spread": spread, "ms": ms, "predicted_ms": predicted}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
