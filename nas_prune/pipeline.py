"""The whole job: recipe, backbone, axes, calibrate, train, search, derive, fine-tune, evaluate, report.

Every step leaves its result in the run folder and is skipped when the result is there, so a run that was killed at any
instant goes on where it was and ends the same.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from nas_prune import artifact, build
from nas_prune import data as datasets
from nas_prune import recipe as recipes
from nas_prune.arch import Arch
from nas_prune.calibrate import Calibration, calibrate, read, refuse_unreachable
from nas_prune.costs import Budget, Macs, Params, Timing, count, measure_together
from nas_prune.data import Data
from nas_prune.derive import derive
from nas_prune.device import fingerprint
from nas_prune.errors import BudgetError, CheckpointError, RecipeError
from nas_prune.evaluate import top1
from nas_prune.files import read_json, write_json
from nas_prune.finetune import finetune
from nas_prune.gated import GatedModel
from nas_prune.meet import Met, meet
from nas_prune.progress import Bars
from nas_prune.recipe import Recipe
from nas_prune.search import learn, settle
from nas_prune.selectors import selectors
from nas_prune.space import SearchSpace
from nas_prune.trace import trace
from nas_prune.track import Track, open_track
from nas_prune.train import Run, Stage, fit, optimizer_of, task_loss
from nas_prune.verify import verify

Until = Literal["calibrate", "search", "derive", "finetune", "evaluate", "report"]
FINAL_SECONDS = 3.0  # time spent on timing each model at the end


@dataclass
class Job:
    """One run at work: what the steps share."""

    recipe: Recipe
    folder: Path
    run: Run
    data: Data
    model: nn.Module
    space: SearchSpace
    seconds: dict[str, float]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """How long a step took, also over several attempts; a step that was skipped takes no time."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[step] = self.seconds.get(step, 0.0) + spent
            write_json(self.folder / "seconds.json", self.seconds)


def run(
    recipe: Recipe, folder: Path, *, until: Until = "report", resume: bool = True, force: bool = False
) -> dict[str, Any]:
    """Run a recipe in ``folder``, or go on with it, up to and including the step ``until``; returns its results."""
    data = datasets.load(recipe.data, seed=recipe.seed)
    accelerator = build.accelerator(recipe)
    model = build.model(recipe.model, data)
    open_folder(recipe, folder, resume=resume, force=force)
    with Bars() as bars, open_track(folder, recipe.track, config=recipes.flat(recipe), name=recipe.name) as track:
        space = _space(recipe, folder, model, data)
        known = folder / "seconds.json"
        shared = Run(accelerator, recipe.seed, folder, track, bars)
        job = Job(
            recipe,
            folder,
            shared,
            data,
            model.to(accelerator.device),
            space,
            read_json(known) if known.exists() else {},
        )
        results = _steps(job, until)
        _summarise(track, results)
    if until == "report":
        report(folder)
    return results


def open_folder(recipe: Recipe, folder: Path, *, resume: bool, force: bool) -> None:
    """Make the run folder, or check that it holds this very recipe."""
    path = folder / "recipe.yaml"
    if path.exists() and not resume:
        if not force:
            raise RecipeError(f"{folder} holds a run; resume it, choose another --out, or add --force to delete it")
        shutil.rmtree(folder)
    if path.exists():
        difference = _difference(open_run(folder), recipe)
        if difference:
            raise RecipeError(
                f"{folder} holds a run of another recipe ({difference}); choose another --out, or --no-resume --force"
            )
    folder.mkdir(parents=True, exist_ok=True)
    recipes.write(recipe, path)


def open_run(folder: Path) -> Recipe:
    """The recipe of a run folder."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"{folder} is not a run folder: it has no recipe.yaml. Start one with `nas-prune run RECIPE --out {folder}`"
        )
    return recipes.read(str(path), [])


def evaluate(folder: Path) -> dict[str, Any]:
    """Results of a run as far as it has gone; of an artefact, its counts and its latency here."""
    if (folder / "recipe.yaml").is_file():
        return run(open_run(folder), folder, until="evaluate")
    facts = artifact.describe(folder)
    model = artifact.load(folder)
    size = facts["pretrained_cfg"].get("input_size", [3, 224, 224])
    inputs = torch.randn(1, *size)
    timing = measure_together({"model": model}, inputs)["model"]
    counted = count(model, inputs)
    return {
        "macs": counted.macs,
        "params": counted.params,
        "measured_ms": timing.median_ms,
        "measured_ms_spread": timing.spread_ms,
    }


def report(folder: Path) -> Path:
    """Write report.html of a run folder."""
    from nas_prune.report import report as write_report  # matplotlib is slow to import

    return write_report(folder)


def _difference(old: Recipe, new: Recipe) -> str:
    """The first keys in which two recipes differ."""
    before, after = recipes.flat(old), recipes.flat(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(f"{key}: {before.get(key)} there, {after.get(key)} here" for key in keys[:3])


def _space(recipe: Recipe, folder: Path, model: nn.Module, data: Data) -> SearchSpace:
    """Trace the backbone and lay the search space over it."""
    axes = trace(model, build.example(recipe, data, batch=1))
    space = SearchSpace.read(recipe.space, axes)
    plain = [
        {
            "name": a.name,
            "kind": a.kind,
            "size": a.size,
            "frozen": a.frozen,
            "divisor": a.divisor,
            "members": [vars(m) for m in a.members],
        }
        for a in space.axes.values()
    ]
    write_json(folder / "axes.json", {"axes": plain})
    return space


def _steps(job: Job, until: Until) -> dict[str, Any]:
    """The steps in order."""
    with job.timed("calibrate"):
        calibration = _calibrated(job)
    if until == "calibrate":
        return {
            "dense_ms": calibration.dense_ms,
            "smallest_ms": calibration.smallest_ms,
            "error": vars(calibration.error),
        }
    with job.timed("dense"):
        _train_dense(job, "dense", job.recipe.dense.epochs)
    parent = copy.deepcopy(job.model)
    gated = build.gated(job.recipe, job.model, job.space)
    with job.timed("search"):
        met = _searched(job, gated.to(job.run.accelerator.device), calibration)
    if until == "search":
        return {"arch": met.arch.sizes(job.space.free), "rounds": met.as_rows()}
    with job.timed("derive"):
        small, certificate = _derived(job, met.arch)
    results = {"target_ms": build.budget(job.recipe, job.space.axes, calibration.predictor).limit, **certificate}
    if until == "derive":
        return results
    with job.timed("baseline"):
        teacher = _baseline(job, parent)
    tuned = copy.deepcopy(small)
    with job.timed("finetune"):
        finetune(tuned, teacher, job.data, settings=job.recipe.finetune, run=job.run, images=job.recipe.data)
        _save(job, tuned, "finetuned", met.arch, certificate)
    if until == "finetune":
        return results
    with job.timed("evaluate"):
        return _evaluated(
            job, calibration, met, gated, {"dense": teacher, "derived": small, "finetuned": tuned}, certificate
        )


def _calibrated(job: Job) -> Calibration:
    """The latency predictor of this run, and the refusal of a budget that nothing can meet."""
    folder = job.folder / "calibration"
    if (folder / "calibration.json").exists():
        result = read(folder, job.space)
    else:
        settings = job.recipe.latency
        inputs = build.example(job.recipe, job.data, batch=settings.batch_size, device=job.run.accelerator.device)
        result = calibrate(
            job.model, job.space, inputs, settings, folder, seed=job.recipe.seed, progress=job.run.bars.follow
        )
        error = result.error
        job.run.bars.say(
            f"latency predictor: {100 * error.mape:.1f} % error, Spearman {error.spearman:.2f} "
            f"on {error.held_out} held-out sub-networks; two timings of one differ by {100 * result.noise:.1f} %"
        )
    result.predictor.to(job.run.accelerator.device)
    budget = build.budget(job.recipe, job.space.axes, result.predictor)
    if budget.limit >= float(budget.cost({}).detach()):
        raise BudgetError(f"the dense model is within budget.target {budget.target} already; there is nothing to prune")
    if budget.cost.unit == "ms":
        refuse_unreachable(result, budget.limit, job.space)
    return result


def _train_dense(job: Job, name: str, epochs: int) -> None:
    settings = job.recipe.dense
    stage = Stage(name, epochs, settings, job.recipe.data)
    fit(job.run, stage, job.model, job.data, task_loss(settings), [optimizer_of(job.model, settings)])


def _baseline(job: Job, parent: nn.Module) -> nn.Module:
    """The dense model, trained for as many epochs as the small one will have seen."""
    recipe = job.recipe
    if recipe.dense.epochs and recipe.dense.baseline:
        settings = recipe.dense.model_copy(update={"lr": recipe.finetune.lr, "warmup_epochs": 0.0})
        stage = Stage("baseline", recipe.search.epochs + recipe.finetune.epochs, settings, recipe.data)
        fit(job.run, stage, parent, job.data, task_loss(settings), [optimizer_of(parent, settings)])
    return parent


def _searched(job: Job, gated: GatedModel, calibration: Calibration) -> Met:
    """The search: learn, meet the budget as measured, settle; the architecture in arch.json."""
    recipe = job.recipe
    budget = build.budget(recipe, job.space.axes, calibration.predictor)
    penalties = build.penalty_terms(recipe, budget)
    learn(gated, job.data, budget=budget, penalties=penalties, settings=recipe.search, run=job.run, images=recipe.data)
    met = meet(
        gated.scores(),
        budget,
        job.space,
        selectors[recipe.search.selector],
        _costing(job, calibration, budget),
        rounds=recipe.budget.rounds,
        journal=job.folder / "rounds.jsonl",
    )
    met.arch.write(job.folder / "arch.json")
    settle(gated, met.arch, job.data, settings=recipe.search, run=job.run, images=recipe.data)
    return met


def _costing(job: Job, calibration: Calibration, budget: Budget) -> Callable[[Arch], float]:
    """What an architecture really costs: milliseconds are measured, MACs and parameters are counted exactly."""
    if budget.cost.unit == "ms":
        return _measuring(job, calibration)
    return lambda arch: float(budget.cost(arch.sizes(job.space.free)))


def _measuring(job: Job, calibration: Calibration) -> Callable[[Arch], float]:
    """Milliseconds of a derived architecture: its share of the dense model in turn with it, times the dense model's."""

    def cost(arch: Arch) -> float:
        settings = job.recipe.latency
        inputs = build.example(job.recipe, job.data, batch=settings.batch_size, device=job.run.accelerator.device)
        pair = {"dense": derive(job.model, job.space.axes, Arch()), "small": derive(job.model, job.space.axes, arch)}
        times = measure_together(
            pair, inputs, runtime=settings.runtime, seconds=max(1.0, settings.seconds), threads=settings.threads
        )
        return calibration.dense_ms * times["small"].median_ms / times["dense"].median_ms

    return cost


def _derived(job: Job, arch: Arch) -> tuple[nn.Module, dict[str, Any]]:
    """The small model, with the proof that it computes what the gated one does."""
    small = derive(job.model, job.space.axes, arch)
    path = job.folder / "certificate.json"
    if path.exists():
        return small, read_json(path, CheckpointError)
    certificate = verify(job.model, job.space.axes, arch, build.example(job.recipe, job.data, batch=2)).as_dict()
    write_json(path, certificate)
    _save(job, small, "derived", arch, certificate)
    return small, certificate


def _save(job: Job, model: nn.Module, name: str, arch: Arch, certificate: dict[str, Any]) -> None:
    if job.run.accelerator.is_main_process:
        artifact.save(
            model,
            job.folder / name,
            architecture=job.recipe.model.name,
            kwargs=build.model_kwargs(job.recipe.model, job.data),
            arch=arch,
            certificate=certificate,
            provenance={"recipe": recipes.flat(job.recipe)},
        )


def _evaluated(
    job: Job,
    calibration: Calibration,
    met: Met,
    gated: GatedModel,
    models: dict[str, nn.Module],
    certificate: dict[str, Any],
) -> dict[str, Any]:
    """Everything that the table and the report show; written to results.json."""
    timings = _final_timings(job, models)
    image = build.example(job.recipe, job.data, batch=1, device=job.run.accelerator.device)
    rows: dict[str, Any] = {}
    dense_sizes, sizes = Arch().sizes(job.space.free), met.arch.sizes(job.space.free)
    for name, model in models.items():
        counted, timing = count(model, image), timings[name]
        predicted = float(calibration.predictor(dense_sizes if name == "dense" else sizes))
        rows[name] = _row(top1(model, job.data, job.run.accelerator), counted.macs, counted.params, predicted, timing)
    with gated.fixed(met.arch):
        accuracy = top1(gated, job.data, job.run.accelerator)
    macs, params = (int(cost(job.space.axes)(sizes)) for cost in (Macs, Params))
    rows["gated"] = _row(accuracy, macs, params, float(calibration.predictor(sizes)), None)
    budget = build.budget(job.recipe, job.space.axes, calibration.predictor)
    target, status = _kept(budget, rows)
    results = {
        "status": status,
        "target_ms": target,
        "target": job.recipe.budget.target,
        "measured_share": rows["finetuned"]["measured_ms"] / rows["dense"]["measured_ms"],
        "max_abs_error": certificate["max_abs_error"],
        **{name: rows[name] for name in ("dense", "gated", "derived", "finetuned")},
        "certificate": certificate,
        "rounds": [{"predicted_ms": r.predicted, "measured_ms": r.measured, "target_ms": r.target} for r in met.rounds],
        "seconds": {step: spent for step, spent in job.seconds.items() if spent > 0.5},
        "device": fingerprint(),
    }
    write_json(job.folder / "results.json", results)
    return results


def _final_timings(job: Job, models: dict[str, nn.Module]) -> dict[str, Timing]:
    """All models timed in turn; measured once, then kept."""
    path = job.folder / "timings.json"
    if not path.exists():
        settings = job.recipe.latency
        inputs = build.example(job.recipe, job.data, batch=settings.batch_size, device=job.run.accelerator.device)
        seconds = max(FINAL_SECONDS, settings.seconds) if settings.seconds > 0.05 else settings.seconds
        times = measure_together(models, inputs, runtime=settings.runtime, seconds=seconds, threads=settings.threads)
        write_json(path, {name: vars(timing) for name, timing in times.items()})
    return {name: Timing(**row) for name, row in read_json(path, CheckpointError).items()}


def _row(accuracy: float, macs: int, params: int, predicted: float, timing: Timing | None) -> dict[str, Any]:
    return {
        "top1": accuracy,
        "macs": macs,
        "params": params,
        "predicted_ms": predicted,
        "measured_ms": None if timing is None else timing.median_ms,
        "measured_ms_spread": None if timing is None else timing.spread_ms,
    }


def _kept(budget: Budget, rows: dict[str, Any]) -> tuple[float | None, str]:
    """The target in milliseconds, and whether the measurement met it, within 3 % for the noise of a timing.

    A relative target is relative to the dense model as it was timed in turn with the small one.
    """
    if budget.cost.unit != "ms":
        return None, "met"
    dense, tuned = rows["dense"]["measured_ms"], rows["finetuned"]["measured_ms"]
    share = budget.limit / float(budget.cost({}).detach())
    target = share * dense if budget.relative else budget.limit
    met = tuned <= 1.03 * target
    return target, "met" if met else f"missed: {tuned:.3g} ms measured, the target is {target:.3g} ms"


def _summarise(track: Track, results: dict[str, Any]) -> None:
    """Final figures for W&B."""
    tuned = results.get("finetuned")
    if isinstance(tuned, dict):
        names = {
            "top1": "top1",
            "latency_ms": "measured_ms",
            "latency_pred_ms": "predicted_ms",
            "macs": "macs",
            "params": "params",
        }
        final = {f"final/{name}": tuned[key] for name, key in names.items()}
        track.summary({**final, "final/speedup": 1 / results["measured_share"], "status": results["status"]})
