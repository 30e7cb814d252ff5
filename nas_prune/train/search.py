"""Search: weights and gates are trained together; what the gates decide must fit the budget, as measured.

    warm-up       only the gates learn, the weights stand still
    each round    learn: loss = task + penalties, everything learns
                  score: what the gates, or a criterion, say of each unit
                  select: what stays within the limit of the round, as measured; the rest is removed
    at the end    the architecture is derived and measured until it is within the budget
    freeze        the weights settle in what is left

The phases are those of W-Gates (arXiv 2007.02066) as far as it tells; rounds and the choice by measurement are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from nas_prune.base.errors import BudgetError
from nas_prune.base.parts import bound
from nas_prune.costs import Budget
from nas_prune.derivation.derive import edit
from nas_prune.derivation.removal import irremovable, removed
from nas_prune.methods.compensations import compensations
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, Mover, movers
from nas_prune.methods.penalties import Penalty
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.schedules import Schedule, schedules
from nas_prune.methods.scores import Batches, Scores
from nas_prune.methods.selectors import selectors
from nas_prune.tracing.arch import Arch
from nas_prune.train.choose import Met, meet
from nas_prune.train.data.loaders import Data, FirstBatches, from_loaders, parted
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.evaluate import top1
from nas_prune.train.held_out.bilevel import Bilevel
from nas_prune.train.held_out.shapley_ascent import ShapleyAscent, weighed
from nas_prune.train.learner import Learner, adam, gate_optimizers
from nas_prune.train.loop import Run, Watch, fit
from nas_prune.train.objective import Objective, penalty_terms, teacher_of
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.rounds import Alive, Round, rated, rounds_of
from nas_prune.train.score import SCORE, score
from nas_prune.train.settings import SearchSettings
from nas_prune.train.stage import Stage


def search(
    gated: GatedModel,
    train: Data | DataLoader[Any],
    *,
    budget: Budget,
    penalties: Sequence[Penalty] | None = None,
    settings: SearchSettings | None = None,
    run: Run | None = None,
    cost_of: Callable[[Arch], float] | None = None,
) -> Arch:
    """Train ``gated`` under the budget; returns the architecture, to which the weights have settled.

    ``train``: a dataset, or a loader of (images, labels), which then also serves to watch the accuracy.
    ``penalties``: terms beside the task loss, by default those of the settings. ``cost_of``: measures a derived
    architecture in the unit of the budget; if left out, the prediction is believed.
    """
    settings, run = settings or SearchSettings(), run or Run(Accelerator())
    data = train if isinstance(train, Data) else from_loaders(train, train, classes=_classes(gated))
    select = bound("search.selector", selectors, settings.fitting_selector, 1)
    real = cost_of or (lambda arch: float(budget.cost(arch.sizes(gated.space.free))))
    batches = FirstBatches(data, settings.criterion_batches, run.accelerator.device)

    def decide(alive: Alive, scores: Scores, each: Round) -> Met:
        others = {str(one.name): rated(alive.gated, one, batches) for one in settings.further}
        asked = alive.question(scores, each.budget(budget), further=others, batches=batches, seed=run.seed)
        return meet(asked, select, lambda arch: real(alive.arch(arch)), rounds=each.tries(measured=cost_of is not None))

    parts = Parts(
        budget,
        budget,
        partial(penalty_terms, settings),
        lambda gated, _: rated(gated, settings.criterion, batches),
        decide,
        batches,
    )
    if penalties is not None:
        penalised = any(not isinstance(each, BudgetPenalty) for each in penalties)
        parts = replace(parts, penalties=lambda _: penalties, learns=settings.learns_if(penalised))
    return searched(gated, data, parts, settings=settings, run=run).arch


@dataclass(frozen=True)
class Parts:
    """What decides in a search: ``budget``, and all limits as one (``joint``); what penalties are made of the limit of
    a round, what scores its units, and what meets that limit, and in the end the budget, as measured. ``images``: how
    those of the training are mixed; ``learns``: whether there is joint training, by default as the settings say.
    """

    budget: Budget
    joint: Budget
    penalties: Callable[[Budget], Sequence[Penalty]]
    score: Callable[[GatedModel, Round], Scores]
    meet: Callable[[Alive, Scores, Round], Met]
    batches: Batches = ()
    images: DataSettings = field(default_factory=DataSettings)
    learns: bool | None = None


def searched(gated: GatedModel, data: Data, parts: Parts, *, settings: SearchSettings, run: Run) -> Met:
    """The loop of every search; the weights of ``gated`` have settled in the architecture, which is in its units."""
    teacher = teacher_of(gated.plain(), run.accelerator) if settings.distill else None
    learner = Learner(gated, settings, None, teacher)
    learns = settings.learns if parts.learns is None else parts.learns
    if learns:
        warm_up(learner, data, parts, run=run)
    training, learner.mover = moved(learner, data, parts, run=run)
    for each in rounds_of(settings.rounds, settings.joint, _schedule(settings)):
        if learns:
            learn(learner, training, parts, each, run=run)
        if learner.mover is not None and settings.rounds > 1:
            learner.remove(learner.mover.left())  # no gate lets anything of the others pass: nothing to make up for
        scores = parts.score(learner.gated, each)
        if learner.mover is None and not each.last:
            before = learner.weights()
            if not learner.remove(_closed(learner, parts, scores, each, run=run), before):
                run.bars.say(f"round {each.number} removes nothing: nothing that it leaves could change any more")
    for model in learner.models:
        model.fold()
    met = parts.meet(learner.alive, scores, each)
    _change(learner, parts, met.arch, met.edits)
    with learner.gated.fixed(met.arch) as closed:
        met = replace(met, closed=top1(closed, data, run.accelerator) if settings.freeze else None)
    settle(learner, met.arch, data, parts, run=run)
    return replace(met, arch=learner.alive.arch(met.arch))


def _closed(learner: Learner, parts: Parts, scores: Scores, each: Round, *, run: Run) -> Arch:
    """What a round leaves: what is within its limit, as measured; all, where nothing is."""
    try:
        met = parts.meet(learner.alive, scores, each)
    except BudgetError as error:
        run.bars.say(f"round {each.number} removes nothing: {error}")
        return Arch()
    _change(learner, parts, met.arch, met.edits)
    return met.arch


def _change(learner: Learner, parts: Parts, arch: Arch, edits: Mapping[str, Tensor]) -> None:
    """Edit weights as a selector has decided, and let what stays make up for what goes, where the settings say so."""
    with learner.setting():
        edit(learner.gated.backbone, edits)
    if learner.settings.compensation.name is not None:
        compensate = bound("search.compensation", compensations, learner.settings.compensation, 3)
        for model in learner.models:
            edit(model.backbone, compensate(model, arch, parts.batches))


def _classes(gated: GatedModel) -> int:
    """How many classes a backbone tells apart: as it says, or as many as its first output has entries."""
    captured = gated.axes.walk.captured
    return int(getattr(gated.backbone, "num_classes", captured.outputs[0][-1] if captured.outputs else 0))


def warm_up(learner: Learner, data: Data, parts: Parts, *, run: Run) -> None:
    """Training of the gates alone; nothing, where they do not learn by gradient."""
    gated, settings = learner.gated, learner.settings
    moving = gate_optimizers(gated, settings)
    limit = parts.joint
    if settings.once:  # which slides from the dense cost, and has not begun to
        limit = Budget.of(float(limit.cost({}).detach()), limit.cost)
    objective = Objective(learner.loss, penalties=parts.penalties(limit), gated=gated)
    gated.backbone.requires_grad_(False)
    stage = Stage("search-warmup", settings.warmup if moving else 0, settings, parts.images)
    fit(run, stage, gated, data, objective, moving, watch=_watching(Alive.all(gated), parts.budget, data, run))
    gated.backbone.requires_grad_(True)


def learn(learner: Learner, data: Data, parts: Parts, each: Round, *, run: Run) -> None:
    """The joint training of one round, under the limit that it has: afterwards the scores say what matters."""
    limit = parts.joint if each.last else Budget.of(each.limit(parts.joint), parts.joint.cost)
    settings = learner.settings
    penalties = learner.under([] if settings.bilevel else parts.penalties(limit))
    stage = Stage(f"search-joint{each.name}", each.epochs, settings, parts.images, each.first, learner.chain)
    objective = learner.objective(penalties, _sliding(learner, each.sliding(parts.joint)))
    watch = _watching(learner.alive, parts.budget, data, run)
    fit(run, stage, learner.gated, data, objective, learner.optimizers, watch=watch, mover=learner.mover)
    for remark in filter(None, (penalty.remark() for penalty in penalties)):
        run.bars.say(remark)
    if each.epochs:  # whether they have passed just now, or before this run was stopped
        learner.advance(each.first + each.epochs)
    if each.last and learner.mover is not None:
        with learner.setting():
            learner.mover.finished()


def _sliding(learner: Learner, limit: Callable[[float], float]) -> Callable[[float], None]:
    """Tells gates and penalties how much of the joint training has passed, and penalties, where all is one training,
    what the network may cost by now, by ``limit``."""

    def slide(epochs: float) -> None:
        learner.advance(epochs)
        for penalty in learner.penalties:
            penalty.advance(epochs)
            if learner.settings.once:
                penalty.aim(limit(epochs))

    return slide


def _schedule(settings: SearchSettings) -> Schedule:
    found: Schedule = bound("search.schedule", schedules, settings.schedule, 2)
    return found


def moved(learner: Learner, data: Data, parts: Parts, *, run: Run) -> tuple[Data, Mover | None]:
    """The data that weights are trained on, and the recipe's mover.

    Gates called ``shapley``, and a bilevel search, bring their own, which looks at images that are held out for it.
    """
    gated, settings = learner.gated, learner.settings
    aim = Aim(parts.joint, settings.joint, _schedule(settings))
    if settings.mover.name is not None:
        made: Mover = bound("search.mover", movers, settings.mover, 2)(gated, aim)
        return data, made
    if not (settings.joint and (settings.bilevel or weighed(gated))):
        return data, None
    training, held = parted(data, settings.holdout)
    if not settings.bilevel:
        return training, ShapleyAscent(gated, aim, data=held, settings=settings.shapley, run=run)
    optimizer = adam(list(gated.gates.parameters()), settings)
    objective = Objective(learner.loss, penalties=parts.penalties(parts.joint), gated=gated)
    return training, Bilevel(gated, aim, data=held, objective=objective, optimizer=optimizer, run=run)


def settle(learner: Learner, arch: Arch, data: Data, parts: Parts, *, run: Run) -> None:
    """Train the weights on with the architecture fixed: on the one schedule of the search, or by themselves at a
    quarter of the learning rate. What is closed is removed for that, where it can be.
    """
    settings, gated, once = learner.settings, learner.gated, learner.settings.once
    calmer = settings if once else settings.model_copy(update={"lr": settings.lr / 4})
    first, chain = (settings.joint, learner.chain) if once else (0, None)
    stage = Stage("search-freeze", settings.freeze, calmer, parts.images, first, chain)
    objective = learner.objective()

    def watch(accuracy: float) -> dict[str, float]:
        return {SCORE: accuracy}  # the budget is met, as measured

    if irremovable(gated.backbone, gated.space) is not None:
        with ExitStack() as fixed:
            for model in learner.models:
                fixed.enter_context(model.fixed(arch))
            optimizer = learner.optimizers[0] if once else optimizer_of(gated.backbone, calmer)
            fit(run, stage, gated, data, objective, [optimizer], watch=watch)
        return
    removal = removed(gated, arch)
    if not once:
        learner.follow(removal)
    optimizer = learner.small(removal) if once else optimizer_of(removal.small, calmer)
    fit(run, stage, removal.small, data, objective, [optimizer], watch=watch)
    learner.alive.put_back(removal)


def _watching(alive: Alive, budget: Budget, data: Data, run: Run) -> Watch:
    """Columns for the journal: predicted cost, the open share of every axis as it was in the beginning, and the score
    of what the gates would have derived now.
    """
    full, cost = {name: axis.size for name, axis in alive.whole.space.free.items()}, alive.cost(budget.cost)
    settled = {name: float(size) for name, size in alive.gated.settled.items()}

    def watch(_: float) -> dict[str, float]:
        with torch.no_grad():
            sizes = {name: float(keep.sum()) for name, keep in alive.gated.gate_values().items()}
        row = {f"gate/{name}": size / full[name] for name, size in sizes.items()}
        unit = "predicted_ms" if cost.unit == "ms" else f"predicted_{cost.unit}"
        return {
            **row,
            "search/open": sum((settled | sizes).values()) / sum(full.values()),
            f"search/{unit}": float(cost(sizes)),
            SCORE: _score_of(alive, alive.gated.arch(), budget, data, run),
        }

    return watch


def _score_of(alive: Alive, arch: Arch, budget: Budget, data: Data, run: Run) -> float:
    """The score of an architecture of what is left, with the weights as they are."""
    with alive.gated.fixed(arch) as gated:
        accuracy = top1(gated, data, run.accelerator)
    cost = alive.cost(budget.cost)(arch.sizes(alive.gated.space.free))
    return score(accuracy, float(cost.detach()), budget.limit)
