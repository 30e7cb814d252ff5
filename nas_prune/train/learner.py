"""What learns in a search, from round to round: the model, and what optimizers, averages and movers know about it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.derivation.removal import Places, Removal, removed
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Mover
from nas_prune.methods.penalties import Penalty
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.roles.outputs import output_dims
from nas_prune.train.average import Average, set_alike
from nas_prune.train.objective import Objective, Teacher, task_loss
from nas_prune.train.optimizers import carry, optimizer_of
from nas_prune.train.rounds import Alive
from nas_prune.train.settings import SearchSettings
from nas_prune.train.stage import Chain

Weights = Sequence[Mapping[str, Tensor]]  # of the backbones of the model that learns, and of its average


class Learner:
    """The model as far as it is ``alive``, its optimizers, the first of which trains the backbone, loss and mover.

    ``teacher``: what it imitates, where the settings say so.
    """

    def __init__(
        self, gated: GatedModel, settings: SearchSettings, mover: Mover | None, teacher: Teacher | None = None
    ) -> None:
        self.alive, self.settings, self.mover, self.teacher = Alive.all(gated), settings, mover, teacher
        self.optimizers = self._optimizers(gated)
        self.loss, self.penalties = task_loss(settings), list[Penalty]()
        self.chain = Chain(settings.joint + settings.freeze * settings.once)

    @property
    def gated(self) -> GatedModel:
        """The model that learns."""
        return self.alive.gated

    @property
    def models(self) -> list[GatedModel]:
        """The model that learns, and its average, if there is one."""
        average = None if self.chain.average is None else self.chain.average.module
        return [self.gated, average] if isinstance(average, GatedModel) else [self.gated]

    def advance(self, epochs: float) -> None:
        """Tell the gates that so many epochs of the joint training have passed."""
        for model in self.models:
            for name in model.deciders:
                model.gate(name).advance(epochs / self.settings.joint)

    def setting(self) -> AbstractContextManager[None]:
        """In the block, what is set in the model is set in its average, too."""
        return set_alike(self.gated, self.chain.average)

    def objective(self, penalties: Sequence[Penalty] = (), slide: Callable[[float], None] | None = None) -> Objective:
        """What it descends: the loss, its teacher's share in it, and penalties; see ``Objective``."""
        return Objective(
            self.loss,
            teacher=self.teacher,
            share=self.settings.distill,
            temperature=self.settings.temperature,
            penalties=penalties,
            gated=self.gated,
            slide=slide,
        )

    def under(self, penalties: Sequence[Penalty]) -> Sequence[Penalty]:
        """Take these penalties from now on, with the state of those before them; returns them."""
        for before, now in zip(self.penalties, penalties, strict=False):
            now.follow(before)
        self.penalties = list(penalties)
        return penalties

    def weights(self) -> Weights:
        """What the weights of the model, and of its average, are now."""
        return [{name: each.clone() for name, each in model.backbone.state_dict().items()} for model in self.models]

    def remove(self, kept: Arch, before: Weights = ()) -> bool:
        """Take all other units out for good. What is left goes on as if they had been closed.

        Where nothing that is left could be gated, all stays: False, and weights are again what they were ``before``
        they were made ready for it. Raises SpaceError or RecipeError where it cannot be.
        """
        if all(len(kept.kept.get(name, range(axis.size))) == axis.size for name, axis in self.gated.space.free.items()):
            return True
        removal = removed(self.gated, kept)
        found = self.alive.without(removal)
        if found is None:
            for model, state in zip(self.models, before, strict=False):
                model.backbone.load_state_dict(state)
            return False
        alive, places = found
        came = _came(self.gated, alive.gated, places) | self.follow(removal)
        self.optimizers = self._carried(came, self._optimizers(alive.gated))
        if self.chain.average is not None:
            former = self.chain.average.module
            self.chain.average = _average(former, alive.gated, places, self.chain.average.decay)
            _agree(former, self.chain.average.module, kept)
        if self.mover is not None:
            self.mover.follow(alive.gated, kept)
        self.alive = alive
        return True

    def small(self, removal: Removal) -> Optimizer:
        """An optimizer of the plain model that a removal left, with what the present one knows; the average follows."""
        small = removal.small
        made = [optimizer_of(small, self.settings)]
        if self.chain.average is not None:
            former = self.chain.average.module.get_submodule("backbone")
            self.chain.average = _average(former, small, removal.places, self.chain.average.decay)
        came = _came(self.gated.backbone, small, removal.places) | self.follow(removal)
        return self._carried(came, made)[0]

    def follow(self, removal: Removal) -> dict[Tensor, tuple[Tensor, Tensor]]:
        """Let the loss go on with what a removal left; its parameters that are new, and where their numbers were."""
        axes, kept = self.gated.axes, removal.kept
        return dict(self.loss.follow(lambda path: [axes.indices(term, kept) for term in output_dims(axes, path)]))

    def _optimizers(self, gated: GatedModel) -> list[Optimizer]:
        weights, gates = optimizer_of(gated.backbone, self.settings), list(gated.gates.parameters())
        if self.settings.gate_lr is None and gates:
            weights.add_param_group({"params": gates, "weight_decay": self.settings.weight_decay})
            return [weights]
        return [weights, *([] if self.settings.bilevel else gate_optimizers(gated, self.settings))]

    def _carried(self, came: dict[Tensor, tuple[Tensor, Tensor]], made: list[Optimizer]) -> list[Optimizer]:
        """These optimizers, with what the present ones know; ``came``: parameter -> the one before, and its places."""
        gone = {*self.gated.parameters(), *(former for former, _ in came.values())}
        for before, now in zip(self.optimizers, made, strict=False):
            carry(before, now, came, gone)
        return made


def _came(former: nn.Module, model: nn.Module, places: Places) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """Parameter of a smaller model -> the one before, and where its numbers were in that."""
    known = dict(former.named_parameters())
    return {each: (known[name], places[name]) for name, each in model.named_parameters()}


def gate_optimizers(gated: GatedModel, settings: SearchSettings) -> list[Optimizer]:
    """Adam for gates that have something to learn by gradient; without a rate of their own, what weights have."""
    learning = list(gated.gates.parameters())
    if not learning:
        return []
    return [optimizer_of(gated.gates, settings) if settings.gate_lr is None else adam(learning, settings)]


def adam(learning: Sequence[nn.Parameter], settings: SearchSettings) -> torch.optim.Adam:
    """What gates are trained with that have a rate of their own."""
    assert settings.gate_lr is not None
    return torch.optim.Adam(learning, settings.gate_lr, settings.gate_betas, weight_decay=settings.gate_weight_decay)


def _average(former: nn.Module, model: nn.Module, places: Places, decay: float) -> Average:
    """An average of a smaller model, of what the average of the former one has of it."""
    average, known = Average(model, decay=decay), former.state_dict()
    state: Mapping[str, Tensor] = average.module.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(known[name].flatten()[places[name].to(value.device)])
    return average


def _agree(former: nn.Module, average: nn.Module, kept: Arch) -> None:
    """Let the gates of an average say of the units that are left what they said."""
    assert isinstance(former, GatedModel)
    assert isinstance(average, GatedModel)
    with torch.no_grad():
        before, now = former.scores(), average.scores()
        for name in average.deciders:
            units = list(kept.kept.get(name, range(len(before[name]))))
            average.gate(name).go_on(before[name][units], now[name])
