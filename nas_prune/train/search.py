"""Search: weights and gates are trained together; what the gates decide must fit the budget, as measured.

    warm-up   only the gates learn, the weights stand still
    joint     loss = task + penalties, everything learns
    choose    scores -> architecture, derived and measured until it is within the budget
    freeze    the chosen architecture stays closed, the weights settle

The phases are those of W-Gates (arXiv 2007.02066) as far as it tells; the choice by measurement is ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from nas_prune.base.parts import bound
from nas_prune.costs import Budget
from nas_prune.derivation.derive import edit
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, Mover, movers
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import Question, selectors
from nas_prune.tracing.arch import Arch
from nas_prune.train.choose import meet
from nas_prune.train.data.loaders import Data, from_loaders
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.loop import Run, Stage, fit, optimizer_of
from nas_prune.train.objective import Objective, task_loss, task_objective
from nas_prune.train.settings import SearchSettings
from nas_prune.train.shapley_ascent import ShapleyAscent, weighed


def search(
    gated: GatedModel,
    train: Data | DataLoader[Any],
    *,
    budget: Budget,
    penalties: Sequence[nn.Module] | None = None,
    settings: SearchSettings | None = None,
    run: Run | None = None,
    cost_of: Callable[[Arch], float] | None = None,
) -> Arch:
    """Train ``gated`` under the budget; returns the architecture, to which the weights have settled.

    ``train``: a dataset, or a loader of (images, labels), which then also serves to watch the accuracy.
    ``penalties``: terms beside the task loss, by default a BudgetPenalty. ``cost_of``: measures a derived architecture
    in the unit of the budget; if left out, the prediction is believed.
    """
    settings, run = settings or SearchSettings(), run or Run(Accelerator())
    data = train if isinstance(train, Data) else from_loaders(train, train, classes=_classes(gated))
    learn(gated, data, budget=budget, penalties=penalties or [BudgetPenalty(budget)], settings=settings, run=run)
    predicted = cost_of or (lambda arch: float(budget.cost(arch.sizes(gated.space.free))))
    scores = gated.scores()
    gated.fold()
    question = Question(scores, budget.cost, budget.limit, gated.space, gated=gated, seed=run.seed)
    met = meet(question, bound("search.selector", selectors, settings.fitting_selector, 1), predicted)
    edit(gated.backbone, met.edits)
    settle(gated, met.arch, data, settings=settings, run=run)
    return met.arch


def _classes(gated: GatedModel) -> int:
    """How many classes a backbone tells apart: as it says, or as many as its first output has entries."""
    captured = gated.axes.walk.captured
    return int(getattr(gated.backbone, "num_classes", captured.outputs[0][-1] if captured.outputs else 0))


def learn(
    gated: GatedModel,
    data: Data,
    *,
    budget: Budget,
    penalties: Sequence[nn.Module],
    settings: SearchSettings,
    run: Run,
    images: DataSettings | None = None,
) -> None:
    """Warm-up and joint training: afterwards the scores say what matters."""
    images = images or DataSettings()
    watch = _watching(gated, budget)
    objective = Objective(task_loss(settings), penalties=penalties, gated=gated)
    moving = _gate_optimizers(gated, settings)
    gated.backbone.requires_grad_(False)
    warmup = Stage("search-warmup", settings.warmup if moving else 0, settings, images)  # or nothing would learn
    fit(run, warmup, gated, data, objective, moving, watch=watch)
    gated.backbone.requires_grad_(True)
    optimizers = [optimizer_of(gated.backbone, settings), *_gate_optimizers(gated, settings)]
    joint = Stage("search-joint", settings.joint, settings, images)
    mover = mover_of(gated, data, budget, settings, run)
    fit(run, joint, gated, data, objective, optimizers, watch=watch, mover=mover)


def mover_of(gated: GatedModel, data: Data, budget: Budget, settings: SearchSettings, run: Run) -> Mover | None:
    """The recipe's mover; gates called ``shapley`` bring their own."""
    aim = Aim(budget, settings.joint, bound("search.schedule", schedules, settings.schedule, 2))
    if settings.mover.name is not None:
        made: Mover = bound("search.mover", movers, settings.mover, 2)(gated, aim)
        return made
    return ShapleyAscent(gated, aim, data=data, settings=settings.shapley, run=run) if weighed(gated) else None


def settle(
    gated: GatedModel,
    arch: Arch,
    data: Data,
    *,
    settings: SearchSettings,
    run: Run,
    images: DataSettings | None = None,
) -> None:
    """Train the weights on with the architecture fixed, at a quarter of the learning rate."""
    calmer = settings.model_copy(update={"lr": settings.lr / 4})
    stage = Stage("search-freeze", settings.freeze, calmer, images or DataSettings())
    with gated.fixed(arch):
        fit(run, stage, gated, data, task_objective(settings), [optimizer_of(gated.backbone, calmer)])


def _gate_optimizers(gated: GatedModel, settings: SearchSettings) -> list[torch.optim.Optimizer]:
    """Adam for gates that have something to learn by gradient."""
    learning = list(gated.gates.parameters())
    return [torch.optim.Adam(learning, lr=settings.gate_lr)] if learning else []


def _watching(gated: GatedModel, budget: Budget) -> Callable[[], dict[str, float]]:
    """Columns for the journal: predicted cost, and the open share of every axis."""

    def watch() -> dict[str, float]:
        with torch.no_grad():
            sizes = {name: float(keep.sum()) for name, keep in gated.gate_values().items()}
        full = {name: axis.size for name, axis in gated.space.free.items()}
        row = {f"gate/{name}": size / full[name] for name, size in sizes.items()}
        unit = "predicted_ms" if budget.cost.unit == "ms" else f"predicted_{budget.cost.unit}"
        return {
            **row,
            "search/open": sum(sizes.values()) / sum(full.values()),
            f"search/{unit}": float(budget.cost(sizes)),
        }

    return watch
