"""Fine-tune the derived model: BatchNorm statistics first, then training with the dense parent as teacher.

Or train the derived architecture anew (``from_scratch``), as DARTS and its kin do.
"""

import copy
import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nas_prune.base.errors import RecipeError
from nas_prune.train.data.loaders import Data, set_epoch
from nas_prune.train.data.order import drawing
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.loop import Run, agree, fit
from nas_prune.train.objective import Objective, Teacher, task_loss
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.score import SCORE
from nas_prune.train.settings import FinetuneSettings
from nas_prune.train.stage import Stage


def finetune(
    model: nn.Module,
    teacher: Teacher | None,
    data: Data,
    *,
    settings: FinetuneSettings,
    run: Run,
    images: DataSettings | None = None,
) -> None:
    """Train the derived ``model`` in place. Without a teacher, on the labels alone."""
    if settings.from_scratch:
        restart(model, run.seed)
    recalibrate(model, data, run, settings.recalibrate_batches)
    stage = Stage("finetune", settings.epochs, settings, images or DataSettings())
    objective = Objective(
        task_loss(settings),
        teacher=teacher,
        share=settings.distill,
        features=settings.distill_features,
        temperature=settings.temperature,
    )
    fit(run, stage, model, data, objective, [optimizer_of(model, settings)], watch=lambda accuracy: {SCORE: accuracy})


def restart(model: nn.Module, seed: int) -> None:
    """Draw all weights anew, the same ones for the same seed: every module's ``reset_parameters``, then the model's own
    ``init_weights``, if it has one. Raises RecipeError, and changes nothing, where a weight is set by neither.
    """
    fresh = copy.deepcopy(model).cpu()
    with drawing(seed, "from_scratch"), torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(math.nan)
        resets = [getattr(module, "reset_parameters", None) for module in fresh.modules()]
        for reset in (*resets, getattr(fresh, "init_weights", None)):
            if callable(reset):
                reset()
    lost = [name for name, parameter in fresh.named_parameters() if not bool(parameter.isfinite().all())]
    if lost:
        raise RecipeError(
            f"finetune.from_scratch: {type(model).__name__} does not say how {', '.join(lost[:3])} begins; "
            f"leave it out, and fine-tune the weights of the search"
        )
    model.load_state_dict(fresh.state_dict())


def recalibrate(model: nn.Module, data: Data, run: Run, batches: int) -> None:
    """Estimate BatchNorm's running statistics again, as the plain average over training batches of epoch 0 on."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or not batches:
        return
    momenta = [norm.momentum for norm in norms]
    loader = run.accelerator.prepare_data_loader(data.train)
    model.to(run.accelerator.device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: the cumulative average
        norm.train()
    with torch.no_grad():
        for images in islice(_epochs(loader, batches), batches):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    agree(run.accelerator, model)


def _epochs(loader: DataLoader[tuple[Tensor, Tensor]], count: int) -> Iterator[Tensor]:
    """The images of so many epochs, batch by batch."""
    for epoch in range(count):
        set_epoch(loader, epoch)
        yield from (images for images, _ in loader)
