"""What a stage of training descends: the loss of its recipe, the teacher's share in it, and penalties.

All of it is one module, whose parameters the stage trains and whose state is in every checkpoint of the stage.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.base.errors import RecipeError
from nas_prune.base.parts import bound
from nas_prune.base.registry import hint
from nas_prune.costs import Budget
from nas_prune.derivation.timm_facts import classifier_of
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses import Loss, Said, losses
from nas_prune.methods.losses.distillation import Distillation, unlikeness
from nas_prune.methods.movers.mover import Mover, Still
from nas_prune.methods.penalties import Penalty, penalties
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.graph.hooks import inputs_of, outputs_of
from nas_prune.train.settings import OptimSettings, SearchSettings


@dataclass(frozen=True)
class Teacher:
    """A dense parent that is asked without gradients, in the precision of the training; see ``teacher_of``.

    ``units``: which of those that its classifier reads its pupil has; None: all.
    """

    model: nn.Module
    accelerator: Accelerator
    units: Tensor | None = None

    def __call__(self, images: Tensor, *, read: bool = False) -> Said:
        """What it says of images (b c h w); with ``read``, and what its classifier reads in its pupil's units."""
        with torch.no_grad(), self.accelerator.autocast(), _reading(self.model, asked=read) as found:
            logits: Tensor = self.model(images)
        features = found[-1] if read else None
        if features is not None and self.units is not None:
            features = features.index_select(1 if features.ndim == 4 else -1, self.units.to(features.device))
        return Said(logits, read=features)


def teacher_of(model: nn.Module, accelerator: Accelerator, units: Tensor | None = None) -> Teacher:
    """``model`` as a teacher: in eval mode, and on the device of the training."""
    return Teacher(model.to(accelerator.device).eval().requires_grad_(False), accelerator, units)


class Objective(nn.Module):
    """``objective(model, images, targets)``: the number to descend, ().

    ``share``: of the loss, what imitates the ``teacher``; ``features``: the weight of what makes the classifier read
    what that of the teacher reads. ``penalties`` look at ``gated`` after the forward pass of the same step; ``slide``
    is told before each step how many epochs have passed.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        teacher: Teacher | None = None,
        share: float = 0.0,
        features: float = 0.0,
        temperature: float = 2.0,
        penalties: Sequence[Penalty] = (),
        gated: GatedModel | None = None,
        slide: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.share, self.features = loss, share if teacher else 0.0, features if teacher else 0.0
        self.imitation = Distillation(temperature=temperature)
        self.terms = tuple(penalties)
        self.penalties = nn.ModuleList(penalties)
        self._around = (teacher, gated)  # in a tuple: they are no part of this module
        self.slide = slide or (lambda _: None)
        if gated is not None:
            for penalty in penalties:
                penalty.begin(gated)

    def begin(self, model: nn.Module, images: Callable[[], Tensor]) -> None:
        """Before a stage that trains ``model``, gated or not: let the loss know its backbone, and what it says of some
        ``images`` (b c h w) where it asks."""

        def look() -> Said:
            with torch.no_grad(), evaluating(model), _features(model, self.loss.features) as features:
                return Said(model(images()), features)

        self.loss.begin(model.backbone if isinstance(model, GatedModel) else model, look)

    def forward(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss + penalties, of one forward pass."""
        teacher, gated = self._around
        reading = bool(self.features)
        wanted = teacher(images, read=reading) if teacher else None
        with _features(model, self.loss.features) as features, _reading(model, asked=reading) as read:
            logits = model(images)
        said = Said(logits, features, wanted, read[-1] if reading else None)
        total: Tensor = self.loss(said, targets)
        if self.share:
            total = (1 - self.share) * total + self.share * self.imitation(said, targets)
        if self.features:
            total = total + self.features * unlikeness(said)
        for penalty in self.terms:
            penalty.hear(said, targets)
            total = total + penalty(gated)
        return total


def task_objective(settings: OptimSettings) -> Objective:
    """The loss of a stage alone."""
    return Objective(task_loss(settings))


def task_loss(settings: OptimSettings) -> Loss:
    """The loss of a stage, as its recipe names it."""
    loss: Loss = bound("loss", losses, settings.loss, 1)(settings.label_smoothing)
    return loss


def penalty_terms(settings: SearchSettings, limit: Budget) -> list[Penalty]:
    """The terms beside the task loss that the settings of a search name, under this limit."""
    wanted = enumerate(settings.penalties)
    return [bound(f"search.penalties.{number}", penalties, each, 1)(limit) for number, each in wanted]


def beside_the_model(
    objective: Objective, mover: Mover | None, optimizer: Optimizer, accelerator: Accelerator
) -> nn.Module:
    """What learns or remembers beside the model, where it trains; the optimizer trains what the objective has to learn.

    Raises RecipeError where several processes would train it.
    """
    beside = nn.ModuleDict({"objective": objective, "mover": mover or Still()}).to(accelerator.device)
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    learning = [parameter for parameter in objective.parameters() if parameter not in trained]
    if learning and accelerator.num_processes > 1:
        raise RecipeError("a loss with parameters of its own is trained by one process; start one, or choose another")
    if learning:
        optimizer.add_param_group({"params": learning})
    return beside


@contextmanager
def _features(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of modules in the forward pass inside the block, as one sees them who reads them there.

    Raises RecipeError for a module that is not there.
    """
    found: dict[str, Tensor] = {}
    modules = list(model.named_modules()) if paths else []  # most losses look at none, and this is in every step
    known = {name.removeprefix("module.").removeprefix("model."): part for name, part in modules}
    gated = next((part for _, part in modules if isinstance(part, GatedModel)), None)
    known |= {name.removeprefix("backbone."): part for name, part in known.items()}
    for path in paths:
        if path not in known:
            raise RecipeError(f"the loss looks at the module {path!r}, which the model lacks{hint(path, known)}")

    def keep(path: str, output: Tensor) -> None:
        found[path] = output if gated is None else gated.seen(path, output)

    with outputs_of({path: known[path] for path in paths}, keep):
        yield found


@contextmanager
def _reading(model: nn.Module, *, asked: bool) -> Iterator[list[Tensor]]:
    """What the classifier is given in the forward pass inside the block, if that is asked."""
    found: list[Tensor] = []
    around = model.modules() if asked else ()
    layer = next((layer for module in around if (layer := classifier_of(module)) is not None), None)
    assert layer is not None or not asked
    with inputs_of({"classifier": layer} if layer else {}, lambda _, given: found.append(given[0])):
        yield found
