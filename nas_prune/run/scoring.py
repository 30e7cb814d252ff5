"""The scores of a run: learnt by gates, or given by a criterion in one shot. Kept, so that many targets share them."""

from safetensors.torch import save

from nas_prune.base.files.whole import atomic_write
from nas_prune.costs import Budget, Limits, Predictor
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Scores
from nas_prune.methods.scores_file import read_scores
from nas_prune.run import build
from nas_prune.run.job import Job
from nas_prune.train.data.loaders import FirstBatches
from nas_prune.train.search import learn

FILE = "scores.safetensors"


def scored(job: Job, gated: GatedModel, predictor: Predictor) -> Scores:
    """Scores (c) per axis. Gates are learnt first, unless the recipe names a criterion."""
    recipe, path = job.recipe, job.folder / FILE
    if recipe.search.learns:
        budget = job.budget(predictor)
        limits = job.limits(predictor)
        joint = Budget("1", Limits([budget, *limits])) if limits else budget
        penalties = build.penalty_terms(recipe, joint)
        learn(
            gated,
            job.data,
            budget=budget,
            penalties=penalties,
            settings=recipe.search,
            run=job.run,
            images=recipe.data,
        )
    learnt = gated.scores()
    gated.fold()
    with job.first():
        if not path.exists():
            scores = _by_criterion(job, gated) if recipe.search.criterion.name else learnt
            atomic_write(path, save({name: score.cpu().contiguous() for name, score in scores.items()}))
    return kept(job)


def kept(job: Job) -> Scores:
    """The scores of a search that is done."""
    return read_scores(job.folder / FILE, job.space)


def _by_criterion(job: Job, gated: GatedModel) -> Scores:
    """What the recipe's criterion says, from training batches. A bar counts the forward passes that it makes."""
    search = job.recipe.search
    batches = FirstBatches(job.data, search.criterion_batches, job.run.accelerator.device)
    bar = job.run.bars.bar(str(search.criterion.name), None)
    counting = gated.register_forward_hook(lambda *_: bar.advance())
    try:
        return build.criterion(search)(gated, batches)
    finally:
        counting.remove()
        bar.end()
