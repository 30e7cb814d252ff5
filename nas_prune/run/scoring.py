"""The scores of a run: learnt by gates, or given by a criterion in one shot. Kept, so that many targets share them."""

from pathlib import Path

from nas_prune.base.files.tensors import content
from nas_prune.base.files.whole import atomic_write
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Scores
from nas_prune.methods.scores_file import read_scores
from nas_prune.run.job import Job
from nas_prune.tracing.graph.hooks import outputs_of
from nas_prune.train.data.loaders import FirstBatches
from nas_prune.train.rounds import Round, rated
from nas_prune.train.settings import CriterionSettings

FILE = "scores.safetensors"


def scored(job: Job, gated: GatedModel, each: Round) -> Scores:
    """Scores (c) per axis of a round: the recipe's criterion gives them, or the gates have learnt them. A file keeps
    them.
    """
    path = job.folder / f"scores{each.name}.safetensors"
    with job.first():
        if not path.exists():
            write(path, _rated(job, gated, job.recipe.search.criterion))
    return read_scores(path, gated.space)


def further(job: Job, gated: GatedModel, name: str = "") -> dict[str, Scores]:
    """Scores of the further criteria of the recipe, by their names, of the round of this ``name``. Files keep them."""
    found = dict[str, Scores]()
    for criterion in job.recipe.search.further:
        path = job.folder / further_file(str(criterion.name), name)
        with job.first():
            if not path.exists():
                write(path, _rated(job, gated, criterion))
        found[str(criterion.name)] = read_scores(path, gated.space)
    return found


def further_file(criterion: str, name: str = "") -> str:
    """The file of the scores of a further criterion, in the round of this name."""
    return f"scores-{criterion}{name}.safetensors"


def write(path: Path, scores: Scores) -> None:
    """Write a file of scores, whole or not at all."""
    atomic_write(path, content(scores, {}))


def kept(job: Job) -> Scores:
    """The scores of a search that is done, of all units that it began with."""
    return read_scores(job.folder / FILE, job.space)


def _rated(job: Job, gated: GatedModel, criterion: CriterionSettings) -> Scores:
    """What a criterion says, from training batches, or the gates. A bar counts the forward passes that it makes."""
    batches = FirstBatches(job.data, job.recipe.search.criterion_batches, job.run.accelerator.device)
    if criterion.name is None:
        return rated(gated, criterion, batches)
    bar = job.run.bars.bar(f"forward passes of {criterion.name}", None)
    try:
        with job.timed("scores"), outputs_of({"": gated}, lambda *_: bar.advance()):
            return rated(gated, criterion, batches)
    finally:
        bar.end()
