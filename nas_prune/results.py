"""What a run has achieved: every model evaluated, counted and timed in turn; the content of results.json."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas_prune.calibrate import Calibration
from nas_prune.costs import Budget, count, counted
from nas_prune.device import fingerprint
from nas_prune.documents import REMAKE, read_document
from nas_prune.errors import CheckpointError
from nas_prune.evaluate import top1
from nas_prune.files import write_json
from nas_prune.gated import GatedModel
from nas_prune.job import Job
from nas_prune.meet import Met
from nas_prune.run_files import Stages, StripesFile, Timings
from nas_prune.stages import stage_times

FINAL = 20  # the last timing takes so many times longer than a sample of the calibration
Figures = dict[str, dict[str, float]]
NOISE = 1.03  # a timing repeats to a few percent


@dataclass(frozen=True)
class Outcome:
    """What the steps of a run have made."""

    calibration: Calibration
    met: Met
    gated: GatedModel
    models: dict[str, nn.Module]
    certificate: dict[str, Any]


def evaluated(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Everything that the table and the report show; written to results.json."""
    rows = _rows(job, outcome)
    budget = job.budget(outcome.calibration.predictor)
    share = rows["finetuned"]["measured_share"]
    target, status = kept_promise(budget, rows["dense"]["measured_ms"], share)
    results = {
        "status": status,
        "target_ms": target,
        "target": job.recipe.budget.target,
        "measured_share": share,
        "max_abs_error": outcome.certificate["max_abs_error"],
        **{name: rows[name] for name in ("dense", "gated", "derived", "finetuned")},
        "certificate": outcome.certificate,
        "calibration": {"predictor": outcome.calibration.name, "trusted": job.recipe.latency.trust_calibration},
        "short": outcome.met.short,
        "stripes": _stripes(job, rows["gated"]),
        "stages": _stages(job, outcome.models),
        "rounds": [
            {"predicted_ms": step.predicted, "measured_ms": step.measured, "target_ms": step.target}
            for step in outcome.met.rounds
        ],
        "seconds": {step: spent for step, spent in job.seconds.items() if spent > 0.5},
        "device": fingerprint(),
    }
    job.write("results.json", results)
    return results


def _stripes(job: Job, gated: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where convolutions lost stripes: multiply-adds and parameters of the live ones, and the form each one took."""
    path = job.folder / "stripes.json"
    if not path.exists():
        return None
    return {"macs": gated["macs"], "params": gated["params"], **read_document(path, StripesFile, CheckpointError)}


def _rows(job: Job, outcome: Outcome) -> dict[str, Any]:
    """One row per model: accuracy, counts, predicted and measured milliseconds."""
    accelerator, predictor, axes = job.run.accelerator, outcome.calibration.predictor, job.space.axes
    sizes = outcome.met.arch.sizes(job.space.free)
    timings, image = timed(job, outcome.models, job.folder), job.images(1)
    rows: dict[str, Any] = {}
    for name, model in outcome.models.items():
        real, predicted = count(model, image), float(predictor({} if name == "dense" else sizes))
        rows[name] = _row(top1(model, job.data, accelerator), real.macs, real.params, predicted, timings[name])
    with outcome.gated.fixed(outcome.met.arch):
        accuracy = top1(outcome.gated, job.data, accelerator)
    left = counted(axes, sizes)
    return {**rows, "gated": _row(accuracy, left.macs, left.params, float(predictor(sizes)), None)}


def timed(job: Job, models: dict[str, nn.Module], folder: Path) -> Figures:
    """All models timed in turn, each also as a share of the dense one; kept in ``folder``."""

    def measured() -> Figures:
        times = job.measure(models, seconds=FINAL * job.recipe.latency.seconds)
        return {name: asdict(times[name]) | {"share": times.ratio(name, "dense").median} for name in models}

    return _kept(job, folder / "timings.json", (Timings, set(models)), measured)


def _stages(job: Job, models: dict[str, nn.Module]) -> Figures:
    """Where the milliseconds of the dense and of the derived model go (eager)."""
    how, pair = job.recipe.latency, {name: models[name] for name in ("dense", "derived")}
    images = job.images(how.batch_size)
    measured = partial(stage_times, pair, images, seconds=5 * how.seconds, threads=how.threads)
    return _kept(job, job.folder / "stages.json", (Stages, set(pair)), measured)


def _kept(job: Job, path: Path, what: tuple[object, set[str]], measured: Callable[[], Figures]) -> Figures:
    """Figures that are measured once and then kept. ``what``: their kind, and the names of the models."""
    kind, names = what
    with job.first():
        if not path.exists():
            write_json(path, measured())
    kept: Figures = read_document(path, kind, CheckpointError)
    if kept.keys() != names:
        raise CheckpointError(f"{path} is not of the models {', '.join(sorted(names))}; {REMAKE}")
    return kept


def _row(
    accuracy: float, macs: int, params: int, predicted: float, timing: Mapping[str, float] | None
) -> dict[str, Any]:
    return {
        "top1": accuracy,
        "macs": macs,
        "params": params,
        "predicted_ms": predicted,
        "measured_ms": None if timing is None else timing["median_ms"],
        "measured_ms_spread": None if timing is None else timing["spread_ms"],
        "measured_share": None if timing is None else timing["share"],
    }


def kept_promise(budget: Budget, dense_ms: float, share: float) -> tuple[float | None, str]:
    """The target in milliseconds, and whether the measurement met it, within 3 % for the noise of a timing.

    ``share``: of the dense model's time, as timed in turn with it; a relative target is relative to the same.
    """
    if budget.cost.unit != "ms":
        return None, "met"
    target = budget.limit / float(budget.cost({}).detach()) * dense_ms if budget.relative else budget.limit
    met = share * dense_ms <= NOISE * target
    return target, "met" if met else f"missed: {share * dense_ms:.3g} ms measured, the target is {target:.3g} ms"
