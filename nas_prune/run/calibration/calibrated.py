"""The calibration of a run: of the file that its recipe names, of this machine's cache, or made now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_prune.base.errors import BudgetError, CalibrationError, RecipeError, StorageError
from nas_prune.base.files.folders import tidy
from nas_prune.base.files.whole import atomic_write
from nas_prune.costs import Budget, Limits
from nas_prune.costs.limits import joint
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.milp import tabulate
from nas_prune.methods.selectors.solver.problem import pose
from nas_prune.run import build
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.bench import staircase
from nas_prune.run.calibration.calibrate import AGAIN, FILE, Calibration, adopt, calibrate, here, refuse_unreachable
from nas_prune.run.calibration.sampling import smallest
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.checks import naming
from nas_prune.run.job import Job
from nas_prune.run.report.summary import in_unit
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.settings import SearchSettings

OTHERWISE = "get that file again, name another in latency.calibration, or leave that key out to have one made here"


ABANDONED = 3600  # seconds after which what a writer has left in the cache is nobody's


def calibrated(job: Job) -> Calibration:
    """The latency predictor of this run; where the recipe says so, the device's width steps are laid over the space."""
    folder, settings = job.folder / "calibration", job.recipe.latency
    with job.first():
        if settings.staircase:
            journal, device = folder / "staircase.jsonl", str(job.run.accelerator.device)
            job.space = staircase(job.space, settings, device, journal, job.run.bars.follow)
        _bring(job, folder)
    result = adopt(folder / FILE, job.space, folder)
    result.predictor.to(job.run.accelerator.device)
    if not settings.trust_calibration:  # one of elsewhere does not know this machine
        job.calm = {"dense": result.calm_ms}
    return result


def refuse(job: Job, calibration: Calibration, budget: Budget) -> None:
    """Before any training: raise BudgetError for a budget that nothing meets, RecipeError for one that is met, or that
    the selector cannot take."""
    if budget.limit >= float(budget.cost({}).detach()):
        raise RecipeError(f"the dense model is within budget.target {budget.target} already; there is nothing to prune")
    if budget.cost.unit == "ms":
        refuse_unreachable(calibration, budget.limit, job.space)
    else:
        _refuse_uncountable(budget, job.space)
    limits = job.limits(calibration.predictor)
    for limit in (each for each in limits if each.cost.unit == "ms"):  # the smallest network has been timed
        refuse_unreachable(calibration, limit.limit, job.space)
    _refuse_impossible([each for each in limits if each.cost.unit != "ms"], job.space)
    _refuse_no_sum(job.recipe.search, joint(budget, limits), job.space)


def _refuse_uncountable(budget: Budget, space: SearchSpace) -> None:
    """Before any training: raise BudgetError if even the smallest network counts more than the limit."""
    least = float(budget.cost(smallest(space, budget.cost).sizes(space.free)).detach())
    if least > budget.limit:
        share = least / float(budget.cost({}).detach())
        raise BudgetError(
            f"the budget of {in_unit(budget.limit, budget.cost.unit)} cannot be met: the smallest network of search "
            f"space {space.name} has {in_unit(least, budget.cost.unit)} ({share:.3g}x of the dense model). Ask for at "
            f"least {share * 1.05:.3g}x, or lower `minimum` in the search space"
        )


def _refuse_impossible(limits: Sequence[Budget], space: SearchSpace) -> None:
    """Before any training: raise BudgetError, naming the limit, if even the smallest network is beyond one."""
    sentences = Limits(limits).violated(smallest(space).sizes(space.free)) if limits else []
    if sentences:
        raise BudgetError(
            f"budget.limits cannot be met: of the smallest network of search space {space.name}, "
            f"{'; '.join(sentences)}. Raise that limit, or lower `minimum` in the search space"
        )


def _refuse_no_sum(search: SearchSettings, budget: Budget, space: SearchSpace) -> None:
    """Before any training: raise RecipeError, naming the key, where "milp" selects and cannot take the cost, whatever
    the scores are."""
    named = {f"search.penalties.{number}.options": each.options for number, each in enumerate(search.penalties)}
    keys = {f"{key}.selector": options.get("selector") for key, options in named.items()}
    keys["search.selector"] = search.fitting_selector.name
    scores = {name: Arch.dense(space.free).keep(axis) for name, axis in space.free.items()}
    for key in (key for key, name in keys.items() if name == "milp"):
        with naming(key):
            tabulate(pose(Question(scores, budget.cost, budget.limit, space)))


def _bring(job: Job, folder: Path) -> None:
    """See to it that the calibration is in the folder of the run, and in the cache.

    Raises CalibrationError if the one that is there, or that the recipe names, does not fit: a run that is gone on with
    elsewhere, or whose search space has changed since.
    """
    settings, about = job.recipe.latency, _about(job)
    inputs = job.images(settings.batch_size)
    wanted = here(job.space, inputs, settings, about)
    kept = calibration_file.cached(wanted | {"asked": settings.model_dump(mode="json"), "seed": job.recipe.seed})
    missing = not (folder / FILE).exists()
    if not missing and not settings.trust_calibration:
        calibration_file.require_fit(folder / FILE, calibration_file.read(folder / FILE, AGAIN)[1], wanted)
    if missing:
        known = _named(settings, wanted) or _remembered(job, kept, wanted)
        if known is not None:
            job.run.bars.say(f"calibration: {known}")
            atomic_write(folder / FILE, known.read_bytes())
            return
        made = calibrate(
            job.model,
            job.space,
            inputs,
            settings,
            folder,
            about=about,
            seed=job.recipe.seed,
            progress=job.run.bars.follow,
        )
        job.run.bars.say(said(made))
    if settings.cache and settings.calibration is None and (missing or not kept.exists()):
        _remember(job, folder / FILE, kept)


def _remember(job: Job, path: Path, kept: Path) -> None:
    """Keep a calibration for later runs; where that cannot be, this one goes on without."""
    try:
        atomic_write(kept, path.read_bytes())
        tidy(kept.parent, seconds=ABANDONED)
    except StorageError as error:
        job.run.bars.say(f"the calibration is not kept for later runs: {error}")


def _named(settings: LatencySettings, wanted: Mapping[str, Any]) -> Path | None:
    """The calibration that the recipe names, if any; raises CalibrationError for a broken one, or one of elsewhere."""
    if settings.calibration is None:
        return None
    path = Path(settings.calibration)
    _, facts = calibration_file.read(path, OTHERWISE)
    if not settings.trust_calibration:
        calibration_file.require_fit(path, facts, wanted)
    return path


def _remembered(job: Job, kept: Path, wanted: Mapping[str, Any]) -> Path | None:
    """The calibration that the cache has, if it is whole; one that is not is made again, and said to be."""
    if not job.recipe.latency.cache or not kept.exists():
        return None
    try:
        _, facts = calibration_file.read(kept, "it is made again")
        calibration_file.require_fit(kept, facts, wanted)
    except CalibrationError as error:
        job.run.bars.say(f"the calibration in the cache is not used, and made again: {error}")
        return None
    return kept


def said(made: Calibration) -> str:
    """One sentence about a calibration: which predictor won, how far it and the others are off, how noisy it is."""
    error, others = made.error, [f"{name} {100 * e.mape:.1f} %" for name, e in made.errors.items() if name != made.name]
    beside = f" ({', '.join(others)})" if others else ""
    return (
        f"latency predictor: {made.name}, {100 * error.mape:.1f} % off{beside} on {error.held_out} sub-networks that "
        f"it had not seen, Kendall {error.kendall:.2f}; two timings of one differ by {100 * made.noise:.1f} %"
    )


def _about(job: Job) -> dict[str, Any]:
    """Which model it is of."""
    return {"name": job.recipe.model.name, "kwargs": build.origin(job.recipe.model, job.data)[1]}
