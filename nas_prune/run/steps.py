"""The steps of a run. Each leaves its result in the run folder, and takes it from there when it is done already."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import read_document
from nas_prune.base.files.whole import write_json
from nas_prune.costs import Budget, CostModel
from nas_prune.costs.limits import joint
from nas_prune.derivation.derive import derive
from nas_prune.derivation.timm_facts import read_by_classifier
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors import Question
from nas_prune.ops import first_alone, inherit
from nas_prune.run import build
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.calibration.calibrate import Calibration
from nas_prune.run.checks import teaches, trains_baseline
from nas_prune.run.files import CertificateFile, StripesFile
from nas_prune.run.genotype import write_genotype
from nas_prune.run.job import Job
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.report.pictures import write_pictures
from nas_prune.run.scoring import FILE, further, further_file, scored, write
from nas_prune.run.stripe_forms import reform, take_forms
from nas_prune.tracing.arch import Arch
from nas_prune.train.choose import Met, meet
from nas_prune.train.data.loaders import FirstBatches
from nas_prune.train.finetune import finetune
from nas_prune.train.loop import Run, fit
from nas_prune.train.objective import penalty_terms, task_objective, teacher_of
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.rounds import WHOLE, Alive, Round
from nas_prune.train.search import Parts
from nas_prune.train.search import searched as search
from nas_prune.train.settings import OptimSettings
from nas_prune.train.stage import Stage

ROUND = 5  # a round of the search is timed so many times longer than a sample of the calibration


def train_dense(job: Job) -> None:
    """Train the backbone before the search; of a choice, the first candidate, from which the others then start."""
    settings = job.recipe.dense
    stage = Stage("dense", settings.epochs, settings, job.recipe.data)
    with first_alone(job.model):
        fit(job.run, stage, job.model, job.data, task_objective(settings), [optimizer_of(job.model, settings)])
    inherit(job.model)


def baseline(job: Job, parent: nn.Module) -> nn.Module:
    """The dense model, trained for as many epochs as the small one will have seen."""
    recipe = job.recipe
    if not trains_baseline(recipe):
        return parent
    settings: OptimSettings = recipe.search
    if recipe.dense.epochs:
        settings = recipe.dense.model_copy(update={"lr": recipe.finetune.lr, "warmup_epochs": 0.0})
    stage = Stage("baseline", recipe.search.epochs + recipe.finetune.epochs, settings, recipe.data)
    fit(job.run, stage, parent, job.data, task_objective(settings), [optimizer_of(parent, settings)])
    return parent


def finetuned(job: Job, small: nn.Module, dense: nn.Module, arch: Arch, run: Run) -> None:
    """Fine-tune a derived model in place, with the dense one as its teacher where that has anything to teach."""
    settings, teacher = job.recipe.finetune, None
    if teaches(job.recipe):
        units = read_by_classifier(dense, job.space.axes, arch) if settings.distill_features else None
        teacher = teacher_of(dense, run.accelerator, units)
    finetune(small, teacher, job.data, settings=settings, run=run, images=job.recipe.data)


def searched(job: Job, gated: GatedModel, calibration: Calibration) -> Met:
    """The search: learn, score, select; the architecture, which meets the budget as measured, goes to arch.json."""
    recipe, predictor = job.recipe, calibration.predictor
    budget, limits = job.budget(predictor), job.limits(predictor)

    def decide(alive: Alive, scores: Scores, each: Round) -> Met:
        learnt = float(alive.cost(budget.cost)(alive.gated.arch().sizes(alive.gated.space.free)).detach())
        with job.first():
            met = within(job, alive, _asked(job, alive, scores, each.budget(budget), each.name), calibration, each)
            if not each.last:
                return met
            if alive.gated is not gated and not (job.folder / FILE).exists():
                write(job.folder / FILE, alive.scores(scores))
                for name, others in further(job, alive.gated, each.name).items():
                    write(job.folder / further_file(name), alive.scores(others))
            if met.remark:
                job.run.bars.say(met.remark)
            write_pictures(job.folder / "pictures", met.pictures)
            whole = alive.arch(met.arch)
            whole.write(job.folder / "arch.json")
            write_genotype(job.folder / "genotype.json", whole.kept, recipe.space)
        ahead = recipe.search.once and recipe.search.freeze >= recipe.search.joint  # most of the training is to come
        return replace(met, gates=None if recipe.search.criterion.name or ahead else learnt)

    parts = Parts(
        budget,
        joint(budget, limits),
        partial(penalty_terms, recipe.search),
        partial(scored, job),
        decide,
        _batches(job),
        recipe.data,
    )
    return search(gated, job.data, parts, settings=recipe.search, run=job.run)


def question(job: Job, gated: GatedModel, scores: Scores, budget: Budget) -> Question:
    """What the recipe's selector is asked about the whole network."""
    return _asked(job, Alive.all(gated), scores, budget)


def _asked(job: Job, alive: Alive, scores: Scores, budget: Budget, name: str = "") -> Question:
    """The same about what is left after the round of this name."""
    told = further(job, alive.gated, name)
    return alive.question(scores, budget, further=told, batches=_batches(job), seed=job.recipe.seed)


def _batches(job: Job) -> FirstBatches:
    return FirstBatches(job.data, job.recipe.search.criterion_batches, job.run.accelerator.device)


def within(job: Job, alive: Alive, asked: Question, calibration: Calibration, each: Round = WHOLE) -> Met:
    """The decision of the recipe's selector that meets the limit, and the other limits of the recipe, as they are after
    this round. The one in milliseconds, whichever it is, is met as measured: the others are counted exactly."""
    further = [Budget.of(each.limit(one), alive.cost(one.cost)) for one in job.limits(calibration.predictor)]
    budgets = [Budget.of(asked.limit, asked.cost), *further]
    main = next((one for one in budgets if one.cost.unit == "ms"), budgets[0])
    cost = _costing(job, calibration, main.cost)
    met = meet(
        asked.within(main.limit, main.cost),
        build.selector(job.recipe.search),
        lambda arch: cost(alive.arch(arch)),
        limits=[one for one in budgets if one is not main],
        rounds=each.tries(measured=main.cost.unit == "ms", most=job.recipe.budget.rounds),
        journal=job.folder / f"rounds{'' if each.last else each.name}.jsonl",
    )
    return met if main is budgets[0] else replace(met, rounds=[], short=None)  # these are in the unit of the budget


def _costing(job: Job, calibration: Calibration, cost: CostModel) -> Callable[[Arch], float]:
    """What an architecture really costs: milliseconds are measured, MACs and parameters are counted exactly."""
    if cost.unit == "ms":
        return _measuring(job, calibration)
    return lambda arch: float(cost(arch.sizes(job.space.free)))


def _measuring(job: Job, calibration: Calibration) -> Callable[[Arch], float]:
    """Milliseconds of a derived architecture: its share of the dense model in turn with it, times the dense model's."""
    dense = derive(job.model, job.space.axes, Arch())  # without gates

    def cost(arch: Arch) -> float:
        pair = {"dense": dense, "small": derive(job.model, job.space.axes, arch)}
        times = job.measure(pair, seconds=ROUND * job.recipe.latency.seconds)
        return calibration.dense_ms * times.ratio("small", "dense").median

    return cost


def derived(job: Job, arch: Arch) -> tuple[nn.Module, dict[str, Any]]:
    """The small model, with the proof that it computes what the gated one does; saved unless it is already."""
    small = derive(job.model, job.space.axes, arch)
    with job.first():
        reformed(job, small, job.folder)
        path = job.folder / "certificate.json"
        if path.exists() and saved(job, "derived"):
            return small, read_document(path, CertificateFile, CheckpointError)
        certificate = verify(job.model, job.space.axes, arch, build.example(job.recipe, job.data, batch=2)).as_dict()
        save(job, small, "derived", arch, certificate)
        write_json(path, certificate)
        return small, certificate


def reformed(job: Job, small: nn.Module, folder: Path) -> None:
    """Give stripes the forms that are fastest here; measured once, then kept in ``folder``."""
    path, how = folder / "stripes.json", job.recipe.latency
    if path.exists():
        take_forms(small, read_document(path, StripesFile, CheckpointError)["convolutions"])
    elif job.space.axes.stripes:
        images = job.images(how.batch_size)
        rows = reform(small, images, conditions(how), seconds=how.seconds, follow=job.run.bars.follow)
        write_json(path, {"convolutions": rows})


def saved(job: Job, name: str) -> bool:
    """Whether an artefact is in the run folder as it was saved; says so where one is there and is not."""
    folder = job.folder / name
    whole = artifact.intact(folder)
    if folder.exists() and not whole:
        job.run.bars.say(f"{folder} is damaged or incomplete; it is made again")
    return whole


def save(job: Job, model: nn.Module, name: str, arch: Arch, certificate: dict[str, Any]) -> None:
    """Write the model as an artefact into the run folder, with its proof and its recipe."""
    if job.run.accelerator.is_main_process:
        source = build.origin(job.recipe.model, job.data)
        kwargs = {name: value for name, value in job.recipe.model.kwargs.items() if name in source[1]}
        told = recipes.flat(job.recipe) | {"model.kwargs": kwargs}  # without a file of weights on this machine
        artifact.save(
            model,
            job.folder / name,
            origin=source,
            arch=arch,
            remarks={"certificate": certificate, "provenance": {"recipe": told}},
        )
