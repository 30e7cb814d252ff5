"""What timm's scripts train.py, validate.py and benchmark.py do, on timm's library and on the parts of a run.

A model is what ``timm.create_model`` takes: ``local-dir:FOLDER`` of an artefact, or a name. How it is fed, trained and
timed is a recipe; what an artefact knows about its images and its training are the defaults of it.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from nas_prune.artifact import folder as artifact
from nas_prune.artifact.config import ARCH
from nas_prune.artifact.export import image_shape
from nas_prune.artifact.timm_models import create_model
from nas_prune.base.company import before_others, in_company
from nas_prune.base.errors import DataError, RecipeError
from nas_prune.base.random_images import random_images
from nas_prune.cli.timm.recipe import facts_of, folder_of
from nas_prune.costs import count, measure_together
from nas_prune.run import build
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.job import difference, held, identity
from nas_prune.run.recipe import inputs
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.tracing.arch import Arch
from nas_prune.train.data import loaders as datasets
from nas_prune.train.data.loaders import Data
from nas_prune.train.data.preprocessing import tell
from nas_prune.train.data.room import check_images
from nas_prune.train.evaluate import answers
from nas_prune.train.finetune import finetune
from nas_prune.train.loop import Run
from nas_prune.train.record.progress import Bars
from nas_prune.train.record.track import track_of_first

Results = dict[str, float]


def validate(recipe: Recipe) -> Results:
    """Accuracy and loss on the held-out images."""
    accelerator, batches = build.accelerator(recipe), {"data.eval_batch_size": recipe.data.eval_batch_size}
    check_images(recipe.data.image_size, batches, accelerator.device)
    data = datasets.load(recipe.data, seed=recipe.seed)
    model = _created(recipe)
    _check_fit(model, data)
    build.check_memory(recipe, model, data, batches, accelerator.device)
    model.to(accelerator.device)
    return _scores(model, data, accelerator) | _sizes(recipe, model)


def train(recipe: Recipe, folder: Path) -> Results:
    """Fine-tune a model; checkpoints, journal and the artefact ``finetuned`` are in ``folder``. Resumes by itself."""
    accelerator = build.accelerator(recipe)
    batches = {"data.batch_size": recipe.data.batch_size, "data.eval_batch_size": recipe.data.eval_batch_size}
    check_images(recipe.data.image_size, batches, accelerator.device)
    data = datasets.load(recipe.data, seed=recipe.seed)
    model = _created(recipe, num_classes=data.classes, in_chans=data.channels)
    _check_fit(model, data)
    tell(model, data.seen)
    build.check_memory(recipe, model, data, batches, accelerator.device)
    build.try_step(recipe, model, data, recipe.finetune)
    model.to(accelerator.device)
    first = accelerator.is_main_process
    with in_company(accelerator), held(folder, first=first):
        with before_others(accelerator):
            if first:
                _open(folder, recipe)
        _finetuned(model, recipe, data, accelerator, folder)
    return _scores(model, data, accelerator) | _sizes(recipe, model)


def _finetuned(model: nn.Module, recipe: Recipe, data: Data, accelerator: Accelerator, folder: Path) -> None:
    """Train the model in place and save it."""
    flat, first = recipes.flat(recipe), accelerator.is_main_process
    record = track_of_first(folder, recipe.track, config=flat, name=recipe.name, first=first)
    with Bars(Console(stderr=True, quiet=not first)) as bars, record as track:
        run = Run(accelerator, recipe.seed, folder, track, bars, identity(recipe), build.pace(recipe))
        finetune(model, None, data, settings=recipe.finetune, run=run, images=recipe.data)
    if first:
        kept = folder_of(recipe.model.name, ARCH)
        arch = Arch.read(kept) if kept is not None and kept.is_file() else None
        artifact.save(model, folder / "finetuned", arch=arch, remarks={"provenance": {"recipe": flat}})


def benchmark(recipe: Recipe) -> Results:
    """Measured throughput of a batch, measured latency of one image."""
    accelerator, how = build.accelerator(recipe), recipe.latency
    model = _created(recipe).to(accelerator.device).eval()
    images = random_images(how.batch_size, *_shape(recipe)).to(accelerator.device)
    with accelerator.autocast():
        batch, single = (
            measure_together({"model": model}, each, conditions=conditions(how), seconds=how.seconds)["model"]
            for each in (images, images[:1])
        )
    counted = count(model, images[:1])
    return {
        "infer_samples_per_sec": 1e3 * how.batch_size / batch.median_ms,
        "infer_step_time": batch.median_ms,
        "infer_step_time_spread": batch.spread_ms,
        "infer_batch_size": how.batch_size,
        "latency_ms": single.median_ms,
        "latency_ms_spread": single.spread_ms,
        "infer_gmacs": counted.macs / 1e9,
    } | _sizes(recipe, model)


def _open(folder: Path, recipe: Recipe) -> None:
    """Begin a training in a folder, or check that it holds this very one."""
    path = folder / "recipe.yaml"
    if path.exists() and difference(recipes.read(path), recipe):
        raise RecipeError(f"{folder} holds a training with other settings; choose another --output, or delete it")
    changed = inputs.changed(recipe, folder) if path.exists() else {}
    if changed:
        raise RecipeError(f"{inputs.said(changed, folder)}; put it back, choose another --output, or delete {folder}")
    inputs.keep(recipe, folder)
    recipes.write(recipe, path)


def _created(recipe: Recipe, **arguments: int) -> nn.Module:
    """The model as timm creates it, with the recipe's arguments over these."""
    name, facts = recipe.model.name, facts_of(recipe.model.name)
    size = recipe.data.image_size
    if facts["pretrained_cfg"].get("fixed_input_size") and size != image_shape(facts)[1]:
        arguments["img_size"] = size
    given, advice = {**arguments, **recipe.model.kwargs}, "check the options and model.kwargs"
    return create_model(name, given, RecipeError, advice, pretrained=recipe.model.pretrained)


def _shape(recipe: Recipe) -> tuple[int, int, int]:
    """(c, h, w) of the images."""
    channels, *size = image_shape(facts_of(recipe.model.name), recipe.data.image_size)
    return recipe.model.kwargs.get("in_chans", channels), *size


def _check_fit(model: nn.Module, data: Data) -> None:
    """A model answers in the classes of the data, and sees its channels."""
    for name, wanted in {"num_classes": data.classes, "in_chans": data.channels}.items():
        found = getattr(model, name, wanted)
        if found != wanted:
            raise DataError(
                f"the model has {name} {found}, {data.name} has {wanted}; choose other data with --dataset and "
                f"--data-dir, or, to train, leave out --num-classes and model.kwargs.{name}"
            )


def _scores(model: nn.Module, data: Data, accelerator: Accelerator) -> Results:
    """Top-1 and top-5 accuracy in percent, and mean cross-entropy, over the held-out images."""
    hits, loss, images = torch.zeros(2), 0.0, 0
    for logits, labels in answers(model, data, accelerator):
        best = logits.topk(min(5, data.classes), dim=-1).indices == labels[:, None]
        hits += torch.stack([best[:, 0].sum(), best.sum()]).cpu()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        images += len(labels)
    top1, top5 = (100 * hits / images).tolist()
    return {"top1": top1, "top5": top5, "loss": loss / images, "images": images}


def _sizes(recipe: Recipe, model: nn.Module) -> Results:
    return {"img_size": recipe.data.image_size, "param_count": sum(p.numel() for p in model.parameters())}
