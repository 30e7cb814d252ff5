"""Many targets from one search: the same scores, cut at several limits; each derived, measured, and saved by itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn

from nas_prune import build
from nas_prune.arch import Arch
from nas_prune.calibrate import Calibration
from nas_prune.calibrated import calibrated, refuse
from nas_prune.costs import Budget, counted
from nas_prune.costs.budget import parse_target
from nas_prune.derivation import derive
from nas_prune.documents import read_document
from nas_prune.errors import CheckpointError
from nas_prune.evaluate import top1
from nas_prune.finetune import finetune, recalibrate
from nas_prune.job import Job
from nas_prune.results import Figures, kept_promise, timed
from nas_prune.run_files import TargetRow
from nas_prune.scoring import kept
from nas_prune.steps import baseline, reformed, save, saved, searched, train_dense, within
from nas_prune.verification import verify


def derive_targets(job: Job, targets: Sequence[str], *, tune: bool) -> dict[str, Any]:
    """An artefact per target under ``targets/`` of the run folder, and ``targets.json`` with the figures of all.

    The search is not repeated; it is finished first if it is not. ``tune``: fine-tune every model as the recipe says.
    Raises BudgetError for a target that even the smallest network does not reach.
    """
    budget = job.recipe.budget
    for target in targets:
        parse_target(target)
    calibration = calibrated(job)
    limits = {target: _budget(job, calibration, target) for target in targets}
    for limit in limits.values():
        refuse(job, calibration, limit)
    train_dense(job)
    parent = derive(job.model, job.space.axes, Arch())
    gated = build.gated(job.recipe, job.model, job.space).to(job.run.accelerator.device)
    searched(job, gated, calibration)
    teacher = baseline(job, parent) if tune else parent
    rows = [_one(job, calibration, limit, teacher, tune=tune) for limit in limits.values()]
    content = {"targets": rows, "dense": _dense(job, teacher, rows), "cost": budget.cost}
    job.write("targets.json", content)
    return content


def _one(job: Job, calibration: Calibration, limit: Budget, teacher: nn.Module, *, tune: bool) -> dict[str, Any]:
    """One target: select, derive, prove, measure, save. What is done already is read."""
    name = f"targets/{limit.target.strip()}"
    done = f"{name}/tuned.json" if tune else f"{name}/derived.json"
    made = [f"{name}/derived", *([f"{name}/finetuned"] if tune else [])]
    if (job.folder / done).exists() and all(saved(job, each) for each in made):
        row: dict[str, Any] = read_document(job.folder / done, TargetRow, CheckpointError)
        return row
    with job.first():
        met = within(job, kept(job), calibration, limit, journal=job.folder / name / "rounds.jsonl")
        small = derive(job.model, job.space.axes, met.arch)
        reformed(job, small, job.folder / name)
    images = build.example(job.recipe, job.data, batch=2)
    certificate = verify(job.model, job.space.axes, met.arch, images).as_dict()
    recalibrate(small, job.data, job.run, job.recipe.finetune.recalibrate_batches)
    save(job, small, f"{name}/derived", met.arch, certificate)
    dense = derive(job.model, job.space.axes, Arch())  # without gates
    times = timed(job, {"dense": dense, "small": small}, job.folder / name)
    row = _figures(job, calibration, limit, met.arch) | _measured(limit, times) | {"short": met.short}
    row |= {"top1": top1(small, job.data, job.run.accelerator), "top1_finetuned": None, "folder": name}
    if tune:
        apart = dataclasses.replace(job.run, folder=job.folder / name, track=None)
        finetune(small, teacher, job.data, settings=job.recipe.finetune, run=apart, images=job.recipe.data)
        save(job, small, f"{name}/finetuned", met.arch, certificate)
        row["top1_finetuned"] = top1(small, job.data, job.run.accelerator)
    job.write(done, row)
    return row


def _figures(job: Job, calibration: Calibration, limit: Budget, arch: Arch) -> dict[str, Any]:
    """What is exact or predicted."""
    sizes = arch.sizes(job.space.free)
    left, predicted = counted(job.space.axes, sizes), float(calibration.predictor(sizes))
    return {"target": limit.target, "macs": left.macs, "params": left.params, "predicted_ms": predicted}


def _measured(limit: Budget, times: Figures) -> dict[str, Any]:
    """What was measured in turn with the dense model."""
    small = times["small"]
    target, status = kept_promise(limit, times["dense"]["median_ms"], small["share"])
    return {
        "target_ms": target,
        "measured_ms": small["median_ms"],
        "measured_ms_spread": small["spread_ms"],
        "measured_share": small["share"],
        "status": status,
    }


def _dense(job: Job, teacher: nn.Module, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the targets are compared with; its time is the one that was measured in turn with them."""
    times = [row["measured_ms"] / row["measured_share"] for row in rows]
    return {"top1": top1(teacher, job.data, job.run.accelerator), "measured_ms": median(times), "measured_share": 1.0}


def _budget(job: Job, calibration: Calibration, target: str) -> Budget:
    """The recipe's budget with another target."""
    return Budget(target, job.budget(calibration.predictor).cost)
