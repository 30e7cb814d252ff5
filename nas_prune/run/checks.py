"""Checks: all that a recipe says, tried in the small before the first second is spent on it.

Names are looked up, options are typed as their part types them, and every part that needs no model is built and used
once: a gate on four units, a penalty on a budget, optimizer and schedule of each stage on a layer. What the model and
the data decide is checked in ``build``, when both are there; until then nothing is written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os.path import isfile

import torch
from timm.optim import list_optimizers
from torch import Tensor, nn

from nas_prune.artifact.origin import SOURCES
from nas_prune.artifact.timm_models import check_name
from nas_prune.base.errors import NasPruneError, RecipeError, first_line, shown
from nas_prune.base.parts import bound, import_parts
from nas_prune.base.registry import hint
from nas_prune.base.settings import PartSettings
from nas_prune.costs import Budget, CostModel
from nas_prune.costs.budget import checked_target
from nas_prune.costs.cost import Sizes
from nas_prune.methods.compensations import compensations
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gates import Gate, gates
from nas_prune.methods.losses import losses
from nas_prune.methods.movers import movers
from nas_prune.methods.penalties import penalties
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import selectors
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.recipe.settings import ModelSettings
from nas_prune.tracing.space import read_file
from nas_prune.train.data import loaders as datasets
from nas_prune.train.data.order import drawing
from nas_prune.train.optimizers import SCHEDULES, TO_SCALE, optimizer_of, schedule_of
from nas_prune.train.settings import CriterionSettings, OptimSettings, SearchSettings
from nas_prune.train.stage import Stage

OVERLAY = "pretrained_cfg_overlay"
MOMENTS = 16  # of a stage, at which its schedule is asked


def check(recipe: Recipe) -> None:
    """Raise RecipeError, naming the key, for what no run of this recipe could use."""
    import_parts(recipe.parts)
    share, unit = checked_target("budget.target", recipe.budget.target, recipe.budget.cost)
    if unit == "x" and share >= 1:
        raise RecipeError(f"the dense model is within budget.target {recipe.budget.target} already: nothing to prune")
    for cost, target in recipe.budget.limits.items():
        checked_target(f"budget.limits.{cost}", target, cost)
    _check_sources(recipe.model)
    _check_gate("gate", recipe.gate)
    for kind, own in recipe.gate.kinds.items():
        _check_gate(f"gate.kinds.{kind}", own)
    if gates[recipe.gate.name].looks and (recipe.search.rounds > 1 or recipe.search.freeze):
        raise RecipeError(
            f"gate.name: what a gate called {recipe.gate.name} keeps of each image is released as it was trained; set "
            "search.rounds: 1 and search.freeze: 0"
        )
    _check_penalties(recipe.search)
    epochs = {"dense": recipe.dense.epochs, "search": recipe.search.epochs, "finetune": recipe.finetune.epochs}
    for section, settings in {"dense": recipe.dense, "search": recipe.search, "finetune": recipe.finetune}.items():
        _check_training(section, settings, epochs[section] or 1)
    if recipe.search.criterion.name is not None:
        bound("search.criterion", criteria, recipe.search.criterion, 2)
    if recipe.search.compensation.name is not None:
        bound("search.compensation", compensations, recipe.search.compensation, 3)
    _check_further(recipe.search.further)
    if recipe.search.mover.name is not None:
        bound("search.mover", movers, recipe.search.mover, 2)
    with blaming("search.schedule.options"):
        bound("search.schedule", schedules, recipe.search.schedule, 2)(0, 1)
    bound("search.selector", selectors, recipe.search.fitting_selector, 1)
    if recipe.search.bilevel:
        _check_bilevel(recipe)
    if recipe.search.distill and not begins_trained(recipe):
        raise RecipeError(
            "search.distill imitates the network that the search begins with, and that has learnt nothing: set "
            "model.pretrained, model.checkpoint or dense.epochs, or search.distill to 0"
        )


def _check_penalties(search: SearchSettings) -> None:
    """Each can be made, and its gradient is what moves weights."""
    for number, penalty in enumerate(search.penalties):
        with blaming(f"search.penalties.{number}.options"):  # whether it fits the model is seen when there is one
            bound(f"search.penalties.{number}", penalties, penalty, 1)(Budget("0.5x", _OneAxis()))
        if penalties[penalty.name].to_scale:
            _check_scale(penalty.name, search)


def _check_scale(name: str, search: SearchSettings) -> None:
    """Nothing that changes how long a gradient is."""
    why = f"steps have to be in proportion to the gradient of the penalty {name}"
    if search.optimizer.lower() not in TO_SCALE:
        raise RecipeError(f"search.optimizer: {why}, those of {shown(search.optimizer)} are not; set sgd, or momentum")
    if search.clip_grad is not None:
        raise RecipeError(f"search.clip_grad: {why}, and what is clipped is not; leave it out")


def check_names(recipe: Recipe) -> None:
    """Raise UnknownNameError, DataError or SpaceError for a model, a dataset or a search space that there is not."""
    check_name(recipe.model.name)
    datasets.check_name(recipe.data.name)
    read_file(recipe.space)


def _check_bilevel(recipe: Recipe) -> None:
    """Gates that learn by gradient, and by nothing else, in one round."""
    search, named = recipe.search, [recipe.gate, *recipe.gate.kinds.values()]
    learning = any(list(bound("gate", gates, each, 2)(4, [9]).parameters()) for each in named)
    others = {
        "search.once": search.once,
        "search.rounds": search.rounds > 1,
        "search.mover": search.mover.name,
        "search.criterion": search.criterion.name,
        "search.gate_lr: null": search.gate_lr is None,
    }
    asked = [name for name, value in others.items() if value]
    if asked or not learning:
        why = f"{asked[0]} does not go with that" if asked else "these gates have nothing to learn by gradient"
        raise RecipeError(f"search.bilevel lets gates learn from held-out images, and {why}; leave one of the two out")


def _check_further(further: Sequence[CriterionSettings]) -> None:
    """Each is a criterion, and named once: a selector knows their scores by these names."""
    for number, criterion in enumerate(further):
        bound(f"search.further.{number}", criteria, criterion, 2)
        if criterion.name in {each.name for each in further[:number]}:
            raise RecipeError(f"search.further.{number}: {criterion.name} is named twice; leave one out")


def begins_trained(recipe: Recipe) -> bool:
    """Whether the network that the search begins with has learnt anything."""
    return bool(recipe.dense.epochs or recipe.model.pretrained or recipe.model.checkpoint)


def trains_baseline(recipe: Recipe) -> bool:
    """Whether the dense model is trained for as long as the small one: on from ``dense``, or, where search and training
    are one, by itself from the start."""
    alone = recipe.search.once and not begins_trained(recipe)
    return recipe.dense.baseline and bool(recipe.dense.epochs or alone)


def teaches(recipe: Recipe) -> bool:
    """Whether the small network learns from the dense one, in fine-tuning: not from one that has learnt nothing."""
    tuning = recipe.finetune.epochs and (recipe.finetune.distill or recipe.finetune.distill_features)
    return bool(tuning) and (begins_trained(recipe) or trains_baseline(recipe))


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Whatever is raised in the block, of whoever's making, is a RecipeError that names the key."""
    try:
        yield
    except NasPruneError:
        raise
    except Exception as error:
        what = first_line(error) or type(error).__name__
        raise RecipeError(f"{key} cannot be used: {what}; correct it, or leave it out") from error


@contextmanager
def naming(key: str) -> Iterator[None]:
    """A RecipeError that is raised in the block names the key."""
    try:
        yield
    except RecipeError as error:
        if str(error).startswith(key):
            raise
        raise RecipeError(f"{key}: {error}") from error


def _known(key: str, name: str, names: Mapping[str, object]) -> None:
    if name not in names:
        raise RecipeError(f"{key}: no {shown(name)}{hint(name, names)}")


def _check_sources(settings: ModelSettings) -> None:
    """A recipe may come from anyone, and timm's own checkpoints may be pickles: weights have keys of their own.

    One of timm's ways is allowed, a file on this machine, which timm reads without running what is in it.
    """
    for name, value in settings.kwargs.items():
        sources = SOURCES & value.keys() if isinstance(value, dict) else set()
        allowed = sources <= {"file"} and name == OVERLAY
        if name in ("pretrained", "checkpoint_path", "cache_dir") or (name.startswith("pretrained") and not allowed):
            raise RecipeError(
                f"model.kwargs.{name} names weights; use model.pretrained, or model.checkpoint for a file of your own"
            )
        if sources and not (isinstance(value["file"], str) and isfile(value["file"])):
            raise RecipeError(f"model.kwargs.{name}.file: there is no file {shown(value['file'])}; correct the path")
        if sources and not settings.pretrained:
            raise RecipeError(
                f"model.kwargs.{name}.file is read for model.pretrained: true alone; set that, or use model.checkpoint"
            )


def _check_gate(key: str, settings: PartSettings) -> None:
    """A gate of four units, of filters and of what no weight writes: its numbers are finite, and it begins open."""
    part = bound(key, gates, settings, 2)
    said = f"{key}.options of gate {shown(settings.name)}, {shown(settings.options)}"
    with drawing(0, "checks"), blaming(said):
        for weight in ([torch.randn(4, 9)], []):
            problem = _wrong_with(part(4, [9] * len(weight)), weight)
            if problem:
                raise RecipeError(f"{said}: {problem}; `nas-prune list gates` shows what there is")


def _wrong_with(gate: Gate, weight: list[Tensor]) -> str:
    """What keeps a gate from learning, in a few words; empty where nothing does."""
    for training in (True, False):
        score = gate.train(training).score(weight)
        keep = gate.open(score)
        if keep.requires_grad:
            keep.sum().backward()  # type: ignore[no-untyped-call]
        moved = [each.grad for each in gate.parameters() if each.grad is not None]
        if not all(bool(each.isfinite().all()) for each in (score, keep, *moved)):
            return "its keep values or their gradients are not finite"
    raised = gate.open(score + torch.tensor([1.0, 0, 0, 0]))
    if bool(raised[0] < keep[0] - 1e-6):
        return "a unit of a higher score is less open"
    return "" if bool((keep != 0).any()) else "every unit is closed before the first step"


class _OneAxis(CostModel):
    """A cost that needs no model: units of one axis."""

    unit = "MACs"

    def __call__(self, sizes: Sizes) -> Tensor:
        """Ten units, or as many as there are."""
        return torch.as_tensor(sizes.get("axis", 10.0), dtype=torch.float32)


def check_worth(key: str, value: Tensor) -> None:
    """Raise RecipeError unless a penalty of a dense model, (), is a finite number that is not below zero."""
    if not (value.ndim == 0 and math.isfinite(float(value)) and float(value) >= 0):
        raise RecipeError(
            f"{key} make the penalty of the dense model {shown(value.tolist())}; it must be finite and not below zero, "
            "since a penalty below zero rewards what it should avoid"
        )


def _check_training(section: str, settings: OptimSettings, epochs: int) -> None:
    """Loss, optimizer and schedule of a stage, for one step, and for the learning rates of all."""
    with blaming(f"{section}.loss.options"):
        bound(f"{section}.loss", losses, settings.loss, 1)(settings.label_smoothing)
    known = dict.fromkeys(list_optimizers())
    if settings.optimizer.lower() not in known:
        raise RecipeError(
            f"{section}.optimizer: timm has no {shown(settings.optimizer)}{hint(settings.optimizer, known)}"
        )
    _known(f"{section}.scheduler", settings.scheduler, dict.fromkeys(SCHEDULES))
    if settings.warmup_epochs > epochs:
        raise RecipeError(
            f"{section}.warmup_epochs {settings.warmup_epochs:g} is longer than the stage, {epochs} epochs: it would "
            "never come to its learning rate; lower it"
        )
    with drawing(0, "checks"):
        net = nn.Sequential(nn.Conv1d(2, 4, 2), nn.Flatten(), nn.Linear(4, 3))
        with blaming(f"{section}.optimizer {settings.optimizer}, or its lr, momentum or weight_decay,"):
            optimizer = optimizer_of(net, settings)
            net(torch.randn(2, 2, 2)).square().mean().backward()
            optimizer.step()
        with blaming(f"{section}.scheduler {settings.scheduler}, or its warmup_epochs,"):
            schedule = schedule_of(optimizer, Stage(section, epochs, settings), MOMENTS)
            for moment in range(0, epochs * MOMENTS, epochs):
                schedule.step_update(moment)
                rates = [float(group["lr"]) for group in optimizer.param_groups]
                if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
                    raise ValueError(f"the learning rate of step {moment} of {epochs * MOMENTS} is {rates[0]}")
