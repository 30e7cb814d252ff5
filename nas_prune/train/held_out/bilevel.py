"""Bilevel: weights descend the loss of one half of the images, gates that of the other, in turn.

DARTS (Liu et al., arXiv 1806.09055, section 2.3), first order: the gradient of the held-out loss with respect to alpha
takes the weights as they are,

    alpha <- alpha - xi_a d L_val(w, alpha) / d alpha,    w <- w - xi d L_train(w, alpha) / d w

by Adam, for which the paper has a rate of 3e-4, betas (0.5, 0.999) and a weight decay of 1e-3 (``search.gate_lr``,
``gate_betas``, ``gate_weight_decay``). Ours: penalties are the gates' alone; a step follows that of the weights; it is
computed in full precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import skip_first_batches
from torch import Tensor

from nas_prune.base.errors import RecipeError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, Mover
from nas_prune.train.data.loaders import Data, set_epoch
from nas_prune.train.data.order import drawing
from nas_prune.train.loop import Run
from nas_prune.train.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")  # what torch's Adam calls them


class Bilevel(Mover):
    """A step of ``optimizer``, Adam over the gates, down ``objective`` on ``data``, after every step of the weights.

    What Adam remembers are buffers, so a run that is stopped goes on with them. RecipeError with several processes.
    """

    steps: Tensor

    def __init__(
        self, gated: GatedModel, aim: Aim, *, data: Data, objective: Objective, optimizer: torch.optim.Adam, run: Run
    ) -> None:
        super().__init__(gated, aim)
        if run.accelerator.num_processes > 1:
            raise RecipeError("search.bilevel moves gates in one process; start one, or leave it out")
        self.objective, self._with = objective, (data, optimizer, run)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        for number, parameter in enumerate(self._learning()):
            parameter.requires_grad_(False)  # so that they are constants to the weights
            for moment in MOMENTS:
                self.register_buffer(f"{moment}_{number}", torch.zeros_like(parameter))

    def after_step(self) -> None:
        """The step of the gates."""
        _, optimizer, run = self._with
        images, labels = (each.to(run.accelerator.device) for each in self._next())
        learning = self._learning()
        with drawing(run.seed, "bilevel", int(self.steps)), _learnt(learning):
            loss = self.objective(self.gated, images, labels)
            gradients = torch.autograd.grad(loss, learning, allow_unused=True, materialize_grads=True)
        for number, (parameter, gradient) in enumerate(zip(learning, gradients, strict=True)):
            parameter.grad = gradient
            moments = {name: self.get_buffer(f"{name}_{number}") for name in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(self.steps)), **moments}
        optimizer.step()
        self.steps += 1

    def _learning(self) -> list[Tensor]:
        """What the optimizer moves."""
        return [each for group in self._with[1].param_groups for each in group["params"]]

    def _next(self) -> tuple[Tensor, Tensor]:
        """The held-out batch of this step: that of its number, over and over the images, each time in another order."""
        loader = self._with[0].train
        epoch, number = divmod(int(self.steps), len(loader))
        if self._batches is None or number == 0:
            set_epoch(loader, epoch)
            self._batches = iter(skip_first_batches(loader, number) if number else loader)
        return next(self._batches)


@contextmanager
def _learnt(parameters: Sequence[Tensor]) -> Iterator[None]:
    """In the block, gradients reach these."""
    for each in parameters:
        each.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for each in parameters:
            each.requires_grad_(False)
