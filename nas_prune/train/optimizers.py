"""Optimizers and their schedules, as a recipe names them; and what they remember, carried to a smaller model."""

from collections.abc import Collection, Mapping
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.base.errors import RecipeError
from nas_prune.train.settings import OptimSettings
from nas_prune.train.stage import Stage

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")  # timm's that go step by step

TO_SCALE = ("sgd", "sgdw", "momentum", "nesterov", "nesterovw")  # timm's whose steps are in proportion to gradients


def optimizer_of(model: nn.Module, settings: OptimSettings) -> Optimizer:
    """timm's optimizer by name; no weight decay on biases and norms."""
    created = create_optimizer_v2(
        model, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=settings.momentum
    )
    assert isinstance(created, Optimizer)
    return created


def schedule_of(optimizer: Optimizer, stage: Stage, steps: int) -> Any:
    """timm's schedule of an optimizer, updated every step; it warms up from, and ends at, shares of its own rate."""
    first = optimizer.param_groups[0]
    rate = first.get("initial_lr", first["lr"])
    settings, epochs = stage.settings, stage.chain.epochs if stage.chain else stage.epochs
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=settings.scheduler,
        num_epochs=epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=rate / 100,
        min_lr=rate / 1000,
        decay_epochs=settings.decay_epochs or epochs / 3,
        decay_milestones=[share * epochs for share in settings.decay_milestones],
        decay_rate=settings.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler


def carry(
    former: Optimizer, optimizer: Optimizer, came: Mapping[Tensor, tuple[Tensor, Tensor]], gone: Collection[Tensor]
) -> None:
    """Let an optimizer of a smaller model know what the former one has learnt about its parameters.

    ``came``: parameter -> the one before, and where its numbers were in that, flattened. ``gone``: parameters of the
    former model; all others of the former optimizer are trained on, in groups like theirs. Raises RecipeError for an
    optimizer that remembers something else than numbers per weight.
    """
    for group, known in zip(optimizer.param_groups, former.param_groups, strict=False):
        group.update({name: value for name, value in known.items() if name not in group})  # a count of steps, say
    for parameter, (before, place) in came.items():
        if before in former.state:
            state = former.state[before].items()
            optimizer.state[parameter] = {name: _left(value, before, place, former) for name, value in state}
    heirs = {before: parameter for parameter, (before, _) in came.items()}
    held = {each for group in optimizer.param_groups for each in group["params"]}
    for group in former.param_groups:  # what is no part of the model, of a loss, say
        others = [heirs.get(each, each) for each in group["params"] if each in heirs or each not in gone]
        beside = [each for each in others if each not in held]
        if beside:
            optimizer.add_param_group({**group, "params": beside})
        optimizer.state.update({each: former.state[each] for each in beside if each in former.state})


def _left(value: Any, before: Tensor, place: Tensor, former: Optimizer) -> Any:
    """What is left of something that an optimizer knows about a parameter."""
    if value is None or isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    if not isinstance(value, Tensor) or value.shape != before.shape:
        raise RecipeError(
            f"search.optimizer: {type(former).__name__} remembers more than a number per weight, and cannot go on in "
            "a smaller model; use sgd, adamw or lamb, or search.rounds: 1"
        )
    return value.flatten()[place.to(value.device)]
