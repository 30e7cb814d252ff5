"""Many targets from one search: the same scores, cut at several limits; each derived, measured, and saved by itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from torch import nn

from nas_prune.base.errors import BudgetError, CheckpointError
from nas_prune.base.files.documents import read_document
from nas_prune.costs import Budget, counted
from nas_prune.costs.budget import checked_target
from nas_prune.derivation.derive import derive, edited
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.run import build
from nas_prune.run.calibration.calibrate import Calibration
from nas_prune.run.calibration.calibrated import calibrated, refuse
from nas_prune.run.checks import trains_baseline
from nas_prune.run.files import TimingsFile
from nas_prune.run.job import Job
from nas_prune.run.promise import promised
from nas_prune.run.result_files import TargetFile, TargetsFile
from nas_prune.run.results import Figures, dense_top1, timed
from nas_prune.run.scoring import kept
from nas_prune.run.steps import baseline, finetuned, question, reformed, save, saved, searched, train_dense, within
from nas_prune.tracing.arch import Arch
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import recalibrate
from nas_prune.train.rounds import Alive


def derive_targets(job: Job, targets: Sequence[str], *, tune: bool) -> dict[str, Any]:
    """An artefact per target under ``targets/`` of the run folder, and ``targets.json`` with the figures of all.

    The search is not repeated; it is finished first if it is not. ``tune``: fine-tune every model as the recipe says.
    Raises BudgetError for a target that even the smallest network does not reach.
    """
    budget = job.recipe.budget
    for target in targets:
        checked_target("--targets", target, budget.cost)
    calibration = calibrated(job)
    limits = {target: _budget(job, calibration, target) for target in targets}
    for limit in limits.values():
        refuse(job, calibration, limit)
        _refuse_removed(job, limit, job.budget(calibration.predictor))
    train_dense(job)
    parent = derive(job.model, job.space.axes, Arch())
    gated = build.gated(job.recipe, job.model, job.space).to(job.run.accelerator.device)
    searched(job, gated, calibration)
    teacher = baseline(job, parent) if tune else parent
    found = [_one(job, gated, calibration, limit, teacher if tune else None) for limit in limits.values()]
    dense_ms = _dense_ms(job, found)
    rows = [_placed(row, limit, dense_ms) for row, limit in zip(found, limits.values(), strict=True)]
    accuracy = dense_top1(job, teacher, baseline=tune and trains_baseline(job.recipe))
    dense = {"top1": accuracy, "measured_ms": dense_ms, "measured_share": 1.0}
    content = {"targets": rows, "dense": dense, "cost": budget.cost}
    job.write("targets.json", content)
    return content


def placed_anew(job: Job, calibration: Calibration) -> dict[str, Any] | None:
    """``targets.json``, all its milliseconds shares of the run's final timing; None where there are no targets."""
    path = job.folder / "targets.json"
    if not path.exists():
        return None
    content: dict[str, Any] = read_document(path, TargetsFile, CheckpointError)
    before, now = content["dense"]["measured_ms"], _dense_ms(job, ())
    if now != before:
        rows = [
            _placed(_unplaced(row, before), _budget(job, calibration, row["target"]), now) for row in content["targets"]
        ]
        content = {**content, "targets": rows, "dense": {**content["dense"], "measured_ms": now}}
        job.write("targets.json", content)
    return content


def _unplaced(row: Mapping[str, Any], dense_ms: float) -> dict[str, Any]:
    """What a row of targets.json knows that is not of its duration of the dense model."""
    shares = {
        "predicted_share": row["predicted_ms"] / dense_ms,
        "spread": row["measured_ms_spread"] / row["measured_ms"],
    }
    return {**row, **shares, "counted": row["budget"]["reached"]}


def _refuse_removed(job: Job, limit: Budget, searched_for: Budget) -> None:
    """Raise BudgetError for a target above that of a search which took units out on its way: these have stopped to
    learn."""
    search = job.recipe.search
    if search.compensation.name is not None:
        raise BudgetError(
            f"--targets {limit.target}: what stays has made up for what went at {searched_for.target} already "
            f"(search.compensation); run the recipe with --budget.target={limit.target}"
        )
    if (search.once or search.rounds > 1) and limit.limit > searched_for.limit:
        raise BudgetError(
            f"--targets {limit.target}: the search went to {searched_for.target}, and what it took out on its way has "
            f"not learnt since; run the recipe with --budget.target={limit.target}"
        )


def _one(
    job: Job, gated: GatedModel, calibration: Calibration, limit: Budget, teacher: nn.Module | None
) -> dict[str, Any]:
    """One target: select, derive, prove, measure, save; fine-tuned where there is a teacher. What is done is read."""
    name = f"targets/{limit.target.strip()}"
    done = f"{name}/tuned.json" if teacher else f"{name}/derived.json"
    made = [f"{name}/derived", *([f"{name}/finetuned"] if teacher else [])]
    if (job.folder / done).exists() and all(saved(job, each) for each in made):
        row: dict[str, Any] = read_document(job.folder / done, TargetFile, CheckpointError)
        return row
    with job.first():
        asked = question(job, gated, kept(job), limit)
        met = within(replace(job, folder=job.folder / name), Alive.all(gated), asked, calibration)
        small = derive(job.model, job.space.axes, met.arch, edits=met.edits)
        reformed(job, small, job.folder / name)
    images = build.example(job.recipe, job.data, batch=2)
    certificate = verify(edited(job.model, met.edits), job.space.axes, met.arch, images).as_dict()
    recalibrate(small, job.data, job.run, job.recipe.finetune.recalibrate_batches)
    save(job, small, f"{name}/derived", met.arch, certificate)
    dense = derive(job.model, job.space.axes, Arch())  # without gates
    times = timed(job, {"dense": dense, "small": small}, job.folder / name)
    row = _figures(job, calibration, limit, met.arch) | _measured(times) | {"short": met.short}
    row |= {"top1": top1(small, job.data, job.run.accelerator), "top1_finetuned": None, "folder": name}
    if teacher:
        apart = dataclasses.replace(job.run, folder=job.folder / name, track=None)
        finetuned(job, small, teacher, met.arch, apart)
        save(job, small, f"{name}/finetuned", met.arch, certificate)
        row["top1_finetuned"] = top1(small, job.data, job.run.accelerator)
    job.write(done, row)
    return row


def _figures(job: Job, calibration: Calibration, limit: Budget, arch: Arch) -> dict[str, Any]:
    """The figures of a target that are counted or predicted; nothing is timed."""
    sizes = arch.sizes(job.space.free)
    left, predicted = counted(job.space.axes, sizes), float(calibration.predictor(sizes))
    counted_cost = float(limit.cost(sizes).detach())
    return {
        "target": limit.target,
        "macs": left.macs,
        "params": left.params,
        "counted": counted_cost,
        "predicted_share": predicted / calibration.dense_ms,
    }


def _measured(times: Figures) -> dict[str, float]:
    """What was measured in turn with the dense model."""
    small = times["small"]
    spread = small["spread_ms"] / small["median_ms"]
    return {"dense_ms": times["dense"]["median_ms"], "measured_share": small["share"], "spread": spread}


def _dense_ms(job: Job, found: Sequence[Mapping[str, Any]]) -> float:
    """The run's one duration of the dense model; where it has not come to its final timing, that beside the targets."""
    path = job.folder / "timings.json"
    if path.exists():
        return float(read_document(path, TimingsFile, CheckpointError)["dense"]["median_ms"])
    return float(median(row["dense_ms"] for row in found))


def _placed(row: Mapping[str, Any], limit: Budget, dense_ms: float) -> dict[str, Any]:
    """A row of targets.json: all its milliseconds are shares of the one duration of the dense model."""
    promise = promised(limit, row["counted"], dense_ms, row["measured_share"])
    kept = {name: row[name] for name in ("target", "macs", "params", "measured_share", "short", "folder")}
    measured = row["measured_share"] * dense_ms
    return kept | {
        "top1": row["top1"],
        "top1_finetuned": row["top1_finetuned"],
        "predicted_ms": row["predicted_share"] * dense_ms,
        "measured_ms": measured,
        "measured_ms_spread": row["spread"] * measured,
        "target_ms": promise.limit if promise.unit == "ms" else None,
        "budget": {"cost": "latency" if promise.unit == "ms" else promise.unit, **asdict(promise)},
        "status": promise.status,
    }


def _budget(job: Job, calibration: Calibration, target: str) -> Budget:
    """The recipe's budget with another target."""
    return Budget(target, job.budget(calibration.predictor).cost)
