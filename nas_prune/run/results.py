"""What a run has achieved: every model evaluated, counted and timed in turn; the content of results.json."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import REMAKE, read_document
from nas_prune.base.files.whole import write_json, writing
from nas_prune.base.fingerprint import fingerprint
from nas_prune.costs import Count, count, counted
from nas_prune.methods.criteria.criterion import BEFORE_TRAINING
from nas_prune.methods.gated import GatedModel
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.calibration.calibrate import Calibration
from nas_prune.run.checks import begins_trained, teaches, trains_baseline
from nas_prune.run.dynamic import release
from nas_prune.run.files import Stages, StripesFile, TimingsFile
from nas_prune.run.job import Job
from nas_prune.run.profile import stage_times
from nas_prune.run.promise import cautions, promised
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.train.choose import Met
from nas_prune.train.evaluate import top1

FINAL = 20  # the last timing takes so many times longer than a sample of the calibration
TIMINGS, STAGES = "timings.json", "stages.json"
STAGED = ("dense", "derived")  # the models of which stages are timed
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What the steps of a run have made."""

    calibration: Calibration
    met: Met
    gated: GatedModel
    models: dict[str, nn.Module]
    certificate: dict[str, Any]


def time_anew(job: Job, outcome: Outcome) -> None:
    """Time everything once more that is timed at the end of a run. Nothing of the former goes before all is measured,
    the results first: whatever stops it then, they are made of what is there.
    """
    release(job, outcome.gated, _beside(outcome), anew=True)
    with job.first():
        if job.run.accelerator.is_main_process:
            found = {TIMINGS: _times(job, outcome.models), STAGES: _stage_times(job, outcome.models)}
            with writing(job.folder):
                (job.folder / "results.json").unlink(missing_ok=True)
            for name, figures in found.items():
                write_json(job.folder / name, figures)


def evaluated(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Everything that the table and the report show; written to results.json."""
    rows = _rows(job, outcome)
    release(job, outcome.gated, _beside(outcome))
    results = {
        **_promise(job, outcome, rows),
        "max_abs_error": outcome.certificate["max_abs_error"],
        **{name: rows[name] for name in ("dense", "gated", "derived", "finetuned")},
        "classes": job.data.classes,
        "trained": trained(job.recipe),
        "taught": bool(job.recipe.search.distill) or teaches(job.recipe),
        "certificate": outcome.certificate,
        "calibration": {"predictor": outcome.calibration.name, "trusted": job.recipe.latency.trust_calibration},
        "stripes": _stripes(job, rows["gated"]),
        "stages": _stages(job, outcome.models, rows),
        "seconds": {step: spent for step, spent in job.seconds.items() if spent > 0.5},
        "device": fingerprint(),
    }
    results["cautions"] = cautions(results)
    job.write("results.json", results)
    return results


def _beside(outcome: Outcome) -> dict[str, nn.Module]:
    """What a model that skips takes turns with."""
    return {"dense": outcome.models["dense"], "static": outcome.models["finetuned"]}


def _promise(job: Job, outcome: Outcome, rows: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, what was reached, and the way there, in the unit of the budget."""
    budget, met = job.budget(outcome.calibration.predictor), outcome.met
    counted = float(budget.cost(met.arch.sizes(job.space.free)).detach())
    dense_ms, share = rows["dense"]["measured_ms"], rows["finetuned"]["measured_share"]
    promise, limits = promised(budget, counted, dense_ms, share), _limits(job, outcome, dense_ms, share)
    timed = promise.unit == "ms"
    now = dense_ms / outcome.calibration.dense_ms if timed else 1.0  # milliseconds of this run's one dense timing
    dense = float(budget.cost({}).detach())
    told = ("predicted", "measured", "target")
    return {
        "status": "missed" if any(each["status"] == "missed" for each in limits) else promise.status,
        "target": job.recipe.budget.target,
        "target_ms": promise.limit if timed else None,
        "budget": {"cost": job.recipe.budget.cost, **asdict(promise)},
        "limits": limits,
        "measured_share": share,
        "short": met.short,
        "closed_top1": met.closed,
        "gates": None if met.gates is None else {"ended": met.gates, "limit": budget.limit, "dense": dense},
        "rounds": [{name: now * getattr(each, name) for name in told} for each in met.rounds],
    }


def _limits(job: Job, outcome: Outcome, dense_ms: float, share: float) -> list[dict[str, Any]]:
    """What was reached of each further limit of the recipe."""
    found, sizes = [], outcome.met.arch.sizes(job.space.free)
    for name, budget in zip(job.recipe.budget.limits, job.limits(outcome.calibration.predictor), strict=True):
        promise = promised(budget, float(budget.cost(sizes).detach()), dense_ms, share)
        found.append({"cost": name, **asdict(promise), "status": promise.status})
    return found


def _stripes(job: Job, gated: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where convolutions lost stripes: multiply-adds and parameters of the live ones, and the form each one took."""
    path = job.folder / "stripes.json"
    if not path.exists():
        return None
    return {"macs": gated["macs"], "params": gated["params"], **read_document(path, StripesFile, CheckpointError)}


def _rows(job: Job, outcome: Outcome) -> dict[str, Any]:
    """One row per model: accuracy, counts, predicted and measured milliseconds."""
    predictor, axes = outcome.calibration.predictor, job.space.axes
    sizes = outcome.met.arch.sizes(job.space.free)
    timings, image = timed(job, outcome.models, job.folder), job.images(1)
    dense_ms = timings["dense"]["median_ms"]
    now = dense_ms / outcome.calibration.dense_ms
    rows: dict[str, Any] = {}
    for name, model in outcome.models.items():
        predicted = now * float(predictor({} if name == "dense" else sizes))
        measured = _measured(timings[name], dense_ms)
        known = dense_top1(job, model, baseline=trains_baseline(job.recipe)) if name == "dense" else _top1(job, model)
        rows[name] = _row(known, count(model, image), predicted) | measured
    with outcome.gated.fixed(outcome.met.arch):
        accuracy = _top1(job, outcome.gated)
    return {**rows, "gated": _row(accuracy, counted(axes, sizes), now * float(predictor(sizes)))}


def dense_top1(job: Job, dense: nn.Module, *, baseline: bool) -> float | None:
    """Top-1 of the dense model; None of one that has learnt nothing. ``baseline``: whether it was trained as that."""
    return _top1(job, dense) if baseline or begins_trained(job.recipe) else None


def _top1(job: Job, model: nn.Module) -> float:
    return top1(model, job.data, job.run.accelerator)


def timed(job: Job, models: dict[str, nn.Module], folder: Path) -> Figures:
    """All models timed in turn, each also as a share of the dense one; kept in ``folder``."""
    return _kept(job, folder / TIMINGS, TimingsFile, set(models), partial(_times, job, models))


def _times(job: Job, models: dict[str, nn.Module]) -> Figures:
    times = job.measure(models, seconds=FINAL * job.recipe.latency.seconds)
    return {name: asdict(times[name]) | {"share": times.ratio(name, "dense").median} for name in models}


def _stages(job: Job, models: dict[str, nn.Module], rows: Mapping[str, Any]) -> Figures:
    """Where the milliseconds of the dense and of the derived model go (eager). Where these are what is reported, they
    add up to it: a stage has its share of the model's measured time."""
    how = job.recipe.latency
    found = _kept(job, job.folder / STAGES, Stages, set(STAGED), partial(_stage_times, job, models))
    if conditions(how).runtime != "eager" or how.precision != "float32" or how.channels_last:
        return found
    scale = {name: rows[name]["measured_ms"] / sum(stages.values()) for name, stages in found.items()}
    return {name: {stage: ms * scale[name] for stage, ms in stages.items()} for name, stages in found.items()}


def _stage_times(job: Job, models: dict[str, nn.Module]) -> Figures:
    how, pair = job.recipe.latency, {name: models[name] for name in STAGED}
    return stage_times(pair, job.images(how.batch_size), seconds=5 * how.seconds, threads=how.threads)


def _kept(job: Job, path: Path, kind: object, names: set[str], measured: Callable[[], Figures]) -> Figures:
    """Figures of one kind, of the models of these names, that are measured once and then kept."""
    with job.first():
        if not path.exists():
            write_json(path, measured())
    kept: Figures = read_document(path, kind, CheckpointError)
    if kept.keys() != names:
        raise CheckpointError(f"{path} is not of the models {', '.join(sorted(names))}; {REMAKE}")
    return kept


def trained(recipe: Recipe) -> bool:
    """Whether the weights that units are chosen by have learnt anything, or need not have, for the criterion."""
    search = recipe.search
    jointly = bool(search.joint and search.learns)
    return begins_trained(recipe) or jointly or search.criterion.name in BEFORE_TRAINING


def _row(accuracy: float | None, real: Count, predicted: float) -> dict[str, Any]:
    """Of a model that was not timed: the gated one computes what the derived one does, but no faster."""
    nothing = dict.fromkeys(("measured_ms", "measured_ms_spread", "measured_share"))
    return {"top1": accuracy, "macs": real.macs, "params": real.params, "predicted_ms": predicted, **nothing}


def _measured(timing: Mapping[str, float], dense_ms: float) -> dict[str, float]:
    """Milliseconds as the share of the dense model's, as timed in turn with it."""
    share = timing["share"]
    return {
        "measured_ms": share * dense_ms,
        "measured_ms_spread": share * dense_ms * timing["spread_ms"] / timing["median_ms"],
        "measured_share": share,
    }
