"""After a search with gates that look at images: the model that skips, as an artefact of its own, and its figures.

Beside the static model, which the budget is about, there is one that computes for each image what the gates keep of it.
Units that (almost) never fire are removed from it; the rest is skipped. What it computes and how long that takes
differs from image to image, so both are taken one image at a time: multiply-adds as torch.utils.flop_counter counts
them, and milliseconds in turn with the dense and with the static model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, pstdev
from typing import Any

from torch import Tensor, nn

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import read_document
from nas_prune.base.files.whole import write_json
from nas_prune.costs import count, measure_together
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import removed
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.skipping import skipping, skipping_error
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.files import DynamicFile
from nas_prune.run.job import Job
from nas_prune.run.steps import save, saved
from nas_prune.train.evaluate import top1

NAME = "dynamic"
COUNTED, TIMED = 64, 8  # images at most


def release(
    job: Job, gated: GatedModel, models: Mapping[str, nn.Module], *, anew: bool = False
) -> dict[str, Any] | None:
    """Save the model that skips as ``dynamic``; its figures, which go to dynamic.json. None where no gate looks, and
    where none is left.

    ``models``: what it takes turns with, a ``dense`` one among them. ``anew``: with the figures of now, where there are
    some. Raises ExactnessError where it does not compute what the gated model does.
    """
    if not any(gated.gate(name).looks for name in gated.deciders):
        return None
    path, arch = job.folder / f"{NAME}.json", gated.arch()
    left = gated_again(gated, removed(gated, arch))
    if left is None:
        job.run.bars.say("no model that skips is saved: of what the gates leave, nothing could be skipped")
        return None
    smaller, _ = left
    model = skipping(smaller.eval())
    accuracy = top1(model, job.data, job.run.accelerator)
    with job.first():
        again = anew and job.run.accelerator.is_main_process
        if again or not path.exists() or not saved(job, NAME):
            images = next(iter(job.data.evaluation))[0].to(job.run.accelerator.device)
            proof = {"max_rel_error": skipping_error(smaller, model, images[:TIMED]), "dtype": "float64"}
            save(job, model, NAME, arch, proof)
            write_json(path, {"top1": accuracy, **proof, **_figures(job, {**models, NAME: model}, images)})
    found: dict[str, Any] = read_document(path, DynamicFile, CheckpointError)
    job.run.bars.say(_line(found))
    return found


def _figures(job: Job, models: Mapping[str, nn.Module], images: Tensor) -> dict[str, Any]:
    """Counts over images, and milliseconds, all at one image at a time."""
    each = [image[None] for image in images[:COUNTED]]
    dense, counts = count(models["dense"], each[0]), [count(models[NAME], image) for image in each]
    macs, ms = [one.macs for one in counts], _milliseconds(job, models, each[:TIMED])
    return {
        "images": len(each),
        "macs": mean(macs),
        "macs_spread": pstdev(macs),
        "dense_macs": dense.macs,
        "params": counts[0].params,
        "ms": {name: mean(found) for name, found in ms.items()},
        "ms_spread": {name: pstdev(found) for name, found in ms.items()},
    }


def _milliseconds(job: Job, models: Mapping[str, nn.Module], images: Sequence[Tensor]) -> dict[str, list[float]]:
    """Medians of each model for each image; eager, since no other runtime here chooses as it goes."""
    how = job.recipe.latency
    eager = replace(conditions(how), runtime="eager")
    taken = [measure_together(models, image, conditions=eager, seconds=how.seconds) for image in images]
    return {name: [times[name].median_ms for times in taken] for name in models}


def _line(found: Mapping[str, Any]) -> str:
    """The figures in a line."""
    ms = ", ".join(f"{name} {value:.3g}" for name, value in found["ms"].items())
    share = found["macs"] / found["dense_macs"]
    return f"{NAME}: top-1 {found['top1']:.2f} %, {share:.3f}x the MACs per image (mean of {found['images']}), ms: {ms}"
