"""The whole job: recipe, backbone, axes, calibrate, train, search, derive, fine-tune, evaluate, report.

Every step leaves its result in the run folder and is skipped when the result is there, so a run that was killed at any
instant goes on where it was and ends the same.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from nas_prune.artifact import folder as artifact
from nas_prune.artifact.export import image_shape
from nas_prune.base.company import before_others, in_company
from nas_prune.base.errors import BudgetError, CheckpointError
from nas_prune.base.files.documents import read_document
from nas_prune.base.files.lock import clear
from nas_prune.base.files.whole import write_json
from nas_prune.base.random_images import random_images
from nas_prune.costs import count, measure
from nas_prune.costs.timing.runtimes import refuse_conditions
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import laid_out
from nas_prune.run import build
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.calibration.calibrate import FILE
from nas_prune.run.calibration.calibrated import OTHERWISE, calibrated, refuse
from nas_prune.run.checks import check, check_names
from nas_prune.run.files import Seconds
from nas_prune.run.job import Job, check_folder, difference, held, identity, open_folder, open_run
from nas_prune.run.promise import UNTRAINED
from nas_prune.run.publish import publish, publish_chart
from nas_prune.run.recipe import inputs
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.rehearsal.rehearse import rehearse
from nas_prune.run.result_files import ResultsFile
from nas_prune.run.results import Outcome, evaluated, time_anew, timed, trained
from nas_prune.run.steps import baseline, derived, finetuned, save, searched, train_dense
from nas_prune.run.targets import derive_targets, placed_anew
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data import loaders as datasets
from nas_prune.train.data.loaders import Data
from nas_prune.train.data.order import drawing
from nas_prune.train.data.room import check_images
from nas_prune.train.loop import Run
from nas_prune.train.record.progress import Bars
from nas_prune.train.record.track import track_of_first

__all__ = ["evaluate", "open_run", "report", "run"]

Until = Literal["calibrate", "search", "derive", "finetune", "evaluate", "report"]


def run(
    recipe: Recipe, folder: Path, *, until: Until = "report", resume: bool = True, force: bool = False
) -> dict[str, Any]:
    """Run a recipe in ``folder``, or go on with it, up to and including the step ``until``; returns its results.

    A run that is finished is read, and nothing is written. Raises InUseError where another process runs in the folder.
    """
    recipe = build.resolved(recipe)
    known = _results(folder) if resume and until in ("evaluate", "report") else None
    if known is not None and finished(recipe, folder, report=until == "report"):
        clear(folder)  # the process that finished it may have been killed as it let go
        return known
    with opened(recipe, folder, resume=resume, force=force) as job:
        return _done(job, until)


def _done(job: Job, until: Until) -> dict[str, Any]:
    """The steps up to and including ``until``, and what tells of them."""
    with _told_if_infeasible(job):
        results = _steps(job, until)
    if until == "report" and job.run.accelerator.is_main_process:
        report(job.folder)
    if job.run.track is not None and until in ("evaluate", "report"):
        publish(job, job.run.track, results)
    return results


@contextmanager
def _told_if_infeasible(job: Job) -> Iterator[None]:
    """A budget that nothing meets is a result, too, for those who read results.json; it goes when another is tried."""
    if job.run.accelerator.is_main_process and _results(job.folder) is None:
        (job.folder / "results.json").unlink(missing_ok=True)
    try:
        yield
    except BudgetError as error:
        job.write("results.json", {"status": "infeasible", "target": job.recipe.budget.target, "why": str(error)})
        raise


def _results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that came to its end; None where there are none yet, or none that can be believed."""
    try:
        known: dict[str, Any] = read_document(folder / "results.json", ResultsFile, CheckpointError)
    except CheckpointError:
        return None
    return known


def finished(recipe: Recipe, folder: Path, *, report: bool) -> bool:
    """Whether a folder holds all that a run of this recipe, and of the files that it names, makes."""
    return (
        _whole(folder, report=report)
        and not difference(open_run(folder), recipe)
        and not inputs.changed(recipe, folder)
    )


def _whole(folder: Path, *, report: bool) -> bool:
    """Whether a folder holds all that a run makes, the artefacts as they were saved."""
    made = ("recipe.yaml", "arch.json", *(["report.html"] if report else []))
    there = all((folder / name).is_file() for name in made)
    return there and all(artifact.intact(folder / name) for name in ("derived", "finetuned"))


@contextmanager
def opened(recipe: Recipe, folder: Path, *, resume: bool = True, force: bool = False) -> Iterator[Job]:
    """A job at work in its run folder: data, backbone, axes, bars and journal."""
    recipe = build.resolved(recipe)
    check(recipe)
    check_names(recipe)
    accelerator = build.accelerator(recipe)
    first, pace = accelerator.is_main_process, build.pace(recipe)
    with in_company(accelerator), Bars(Console(stderr=True, quiet=not first)) as bars:
        if first:
            check_folder(recipe, folder, resume=resume, force=force)
        data, model, space = at_hand(recipe, bars, accelerator.device)
        with held(folder, first=first):
            with before_others(accelerator):
                open_folder(recipe, folder, resume=resume or not first, force=force)
            if first:
                _write_axes(space, folder)
            known = folder / "seconds.json"
            seconds = read_document(known, Seconds, CheckpointError) if known.exists() else {}
            flat = recipes.flat(recipe)
            record = track_of_first(folder, recipe.track, config=flat, name=recipe.name, first=first)
            with record as track, in_company(accelerator):
                shared = Run(accelerator, recipe.seed, folder, track, bars, identity(recipe), pace)
                yield Job(recipe, folder, shared, data, model.to(accelerator.device), space, seconds)


def at_hand(recipe: Recipe, bars: Bars, device: torch.device) -> tuple[Data, nn.Module, SearchSpace]:
    """All that a run begins with, tried once; whatever is wrong with it raises before the run folder is touched."""
    refuse_conditions(conditions(recipe.latency))
    if recipe.latency.calibration is not None:
        calibration_file.read(Path(recipe.latency.calibration), OTHERWISE)
    batches = {"data.batch_size": recipe.data.batch_size, "data.eval_batch_size": recipe.data.eval_batch_size}
    batches["latency.batch_size"] = recipe.latency.batch_size
    check_images(recipe.data.image_size, batches, device)
    data = datasets.load(recipe.data, seed=recipe.seed, bars=bars)
    model = build.model(recipe.model, data, bars.say)
    build.check_memory(recipe, model, data, batches, device)
    build.try_step(recipe, model, data, recipe.dense)
    images = build.example(recipe, data, batch=1)
    space = laid(recipe, model, images)
    rehearse(recipe, model, space, images)
    return data, model, space


def laid(recipe: Recipe, model: nn.Module, images: Tensor) -> SearchSpace:
    """The recipe's search space, laid over a model in place."""
    with drawing(recipe.seed, "space"):
        return laid_out(model, images, recipe.space)


def derive_many(folder: Path, targets: list[str], *, tune: bool) -> dict[str, Any]:
    """An artefact per target from the search of a run; see ``targets.derive_targets``."""
    with opened(open_run(folder), folder) as job:
        content = derive_targets(job, targets, tune=tune)
        _drawn(job, content)
        if job.run.accelerator.is_main_process:
            report(folder)
    return content


def _drawn(job: Job, content: dict[str, Any]) -> None:
    """The targets as one chart."""
    from nas_prune.run.report.targets import save_pareto  # matplotlib is slow to import

    if job.run.accelerator.is_main_process:
        save_pareto(content, job.folder / "pareto.svg")
    if job.run.track is not None:
        publish_chart(job.run.track, job.folder / "pareto.svg")


def evaluate(folder: Path, *, again: bool = False) -> dict[str, Any]:
    """Results of a run as far as it has gone; of an artefact, its counts and its latency here.

    ``again``: the models of a run are timed anew, and its report is written anew.
    """
    if (folder / "recipe.yaml").is_file():
        known, recipe = _results(folder), open_run(folder)
        if again:
            with opened(recipe, folder) as job:
                job.anew = True
                return _done(job, "report")
        if known is not None and _whole(folder, report=False):
            clear(folder)
            return known  # whatever has become of the files that it began with
        return run(recipe, folder, until="evaluate")
    facts = artifact.describe(folder)
    model = artifact.load(folder)
    inputs = random_images(1, *image_shape(facts))
    timing = measure(model, inputs)
    counted = count(model, inputs)
    return {
        "macs": counted.macs,
        "params": counted.params,
        "measured_ms": timing.median_ms,
        "measured_ms_spread": timing.spread_ms,
    }


def report(folder: Path) -> Path:
    """Write report.html of a run folder."""
    from nas_prune.run.report.page import report as write_report  # matplotlib is slow to import

    return write_report(folder)


def _write_axes(space: SearchSpace, folder: Path) -> None:
    """axes.json: what came of tracing the backbone and laying the search space over it."""
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


def _steps(job: Job, until: Until) -> dict[str, Any]:
    """The steps in order."""
    if not trained(job.recipe):
        job.run.bars.say(f"warning: {UNTRAINED}")
    with job.timed("calibrate"):
        calibration = calibrated(job)
    if until == "calibrate":
        return {
            "dense_ms": calibration.dense_ms,
            "smallest_ms": calibration.smallest_ms,
            "predictor": calibration.name,
            "error": vars(calibration.error),
            "noise": calibration.noise,
            "file": str(job.folder / "calibration" / FILE),
        }
    refuse(job, calibration, job.budget(calibration.predictor))
    with job.timed("dense"):
        train_dense(job)
    parent = derive(job.model, job.space.axes, Arch())
    gated = build.gated(job.recipe, job.model, job.space)
    with job.timed("search"):
        met = searched(job, gated.to(job.run.accelerator.device), calibration)
    if until == "search":
        return {"arch": met.arch.sizes(job.space.free), "rounds": met.as_rows()}
    with job.timed("derive"):
        small, certificate = derived(job, met.arch)
    results = {"target": job.recipe.budget.target, **certificate}
    if until == "derive":
        return results
    with job.timed("baseline"):
        teacher = baseline(job, parent)
    tuned = copy.deepcopy(small)
    with job.timed("finetune"):
        finetuned(job, tuned, teacher, met.arch, job.run)
        save(job, tuned, "finetuned", met.arch, certificate)
    if until == "finetune":
        return results
    models = {"dense": teacher, "derived": small, "finetuned": tuned}
    with job.timed("evaluate"):
        return _measured(job, Outcome(calibration, met, gated, models, certificate))


def _measured(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The results; targets that were derived before are shares of the same timing."""
    if job.anew:
        time_anew(job, outcome)
    timed(job, outcome.models, job.folder)
    targets = placed_anew(job, outcome.calibration)
    if targets is not None:
        _drawn(job, targets)
    return evaluated(job, outcome)
