"""What a stage of training descends: the loss of its recipe, the teacher's share in it, and penalties.

All of it is one module, whose parameters the stage trains and whose state is in every checkpoint of the stage.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.base.errors import RecipeError
from nas_prune.base.parts import bound
from nas_prune.base.registry import hint
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.losses import Loss, Said, losses
from nas_prune.methods.losses.distillation import Distillation
from nas_prune.methods.movers.mover import Mover, Still
from nas_prune.methods.penalties import Penalty
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.graph.hooks import outputs_of
from nas_prune.train.settings import OptimSettings

Teacher = Callable[[Tensor], Tensor]


class Objective(nn.Module):
    """``objective(model, images, targets)``: the number to descend, ().

    ``share``: of the loss, what imitates the ``teacher`` (images -> logits, without gradients). ``penalties`` look at
    ``gated`` after the forward pass of the same step; ``slide`` is told before each step how many epochs have passed.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        teacher: Teacher | None = None,
        share: float = 0.0,
        temperature: float = 2.0,
        penalties: Sequence[Penalty] = (),
        gated: GatedModel | None = None,
        slide: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.share = loss, share if teacher else 0.0
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
        wanted = teacher(images) if teacher else None
        with _features(model, self.loss.features) as features:
            said = Said(model(images), features, wanted)
        total: Tensor = self.loss(said, targets)
        if self.share:
            total = (1 - self.share) * total + self.share * self.imitation(said, targets)
        for penalty in self.terms:
            penalty.hear(said, targets)
            total = total + penalty(gated)
        return total


def teacher_of(model: nn.Module, accelerator: Accelerator) -> Teacher:
    """What ``model`` says of images (b c h w), in the precision of the training: logits, without gradients."""
    model = model.to(accelerator.device).eval().requires_grad_(False)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            said: Tensor = model(images)
            return said

    return logits


def task_objective(settings: OptimSettings) -> Objective:
    """The loss of a stage alone."""
    return Objective(task_loss(settings))


def task_loss(settings: OptimSettings) -> Loss:
    """The loss of a stage, as its recipe names it."""
    loss: Loss = bound("loss", losses, settings.loss, 1)(settings.label_smoothing)
    return loss


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
