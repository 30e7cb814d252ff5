"""Soft filter pruning: after every epoch the units of least norm are zeroed, and may grow back, or not.

He et al., "Soft Filter Pruning" (arXiv 1808.06866), and what became of it (see the schedules). One update before
training and one after each epoch t, of the weights W that write a unit:

    W <- W (M + alpha (1 - M) H),   M = 0 for the n_t units of least norm, H = 0 for those closed for good

with n_t = floor(N P_t) and h_t = floor(N P_t lambda_t) of N. Ours: a unit is that of an axis, so all convolutions of a
residual stage close the same ones; how many go from each axis, N P, follows from the budget (uniform widths); what is
closed for good has a closed gate, so that neither bias nor BatchNorm of it is seen, and what reads it is in no norm, so
that it can as well be removed; and that set is kept, so it only grows.

Ours, too: a zeroed unit may grow back (``wake``). A unit without weights says its shift beta, and behind a ReLU has a
gradient only where beta > 0 and gamma is not 0: otherwise soft is hard, silently. So the shifts of what is zeroed
softly are raised to a thousandth where they are not positive, and its scales of exactly zero, too.

What is zeroed softly is not silent: behind a BatchNorm a unit without weights says a constant, act(beta - gamma mu /
sigma), in the network that is evaluated, in the last epoch, too; and what is derived has no such unit. So set
``search.compensation: mean``, which moves the constant into the layers that read it: exactly, but for what borders of
zero padding see of it. What is closed for good says nothing, and leaves nothing behind.
"""

from collections import Counter

import torch
from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.methods.criteria.criterion import norms
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.mask import Mask
from nas_prune.methods.movers.mover import Aim, Mover, movers
from nas_prune.methods.selectors.uniform import uniform_widths
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.roles.scales import SCALES, SHIFTS, parameters

AWAKE = 1e-3  # the least shift of what is zeroed and may come back: next to nothing, and positive


@movers.register("soft_filter")
class SoftFilter(Mover):
    """Zeroes weights after every epoch. Needs gates called ``mask`` and a space of widths; SpaceError for others.

    ``wake``: raise shifts that would keep a zeroed unit from growing back; the papers leave them.
    """

    def __init__(self, gated: GatedModel, aim: Aim, *, wake: bool = True) -> None:
        super().__init__(gated, aim)
        odd = [name for name in gated.space.free if name not in gated.writers or not gated.writers[name]]
        if odd or not all(isinstance(gate, Mask) for gate in gated.gates.values()):
            raise SpaceError(
                "soft_filter zeroes the weights of units: set gate.name: mask, and a space of widths alone"
                f"{' (not ' + ', '.join(odd[:3]) + ')' if odd else ''}"
            )
        self.wake = wake
        left = uniform_widths(gated.space, aim.budget.cost, aim.budget.limit)
        self.gone = {name: axis.size - int(left[name]) for name, axis in gated.space.free.items()}
        self.removed = Counter[str]()

    def begin_epoch(self, epoch: int) -> None:
        """Before the first epoch, what the schedule closes from the start."""
        if epoch == 0:
            self.after_epoch(-1)

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        """Zero, shrink or close the units of least norm, as many as the schedule says."""
        phase = self.aim.schedule(epoch, self.aim.epochs)
        awake: dict[str, Tensor] = {}  # 0: zeroed, and may come back
        for name in self.gated.space.free:
            gone, removed = self.gone[name] * phase.closed, self.removed[name]
            keep, norm = self._keep(name), self._norms(name)
            order = torch.where(keep > 0, norm, -1.0).argsort(stable=True)  # what is closed for good comes first
            closed, hard = (order[: max(0, int(number) - removed)] for number in (gone, gone * phase.hard))
            factor = torch.ones_like(norm).index_fill(0, closed, phase.soft).index_fill(0, hard, 0.0)
            self.gated.scale(name, factor)
            keep.index_fill_(0, hard, 0.0)
            awake[name] = (factor != 0).float().index_fill(0, hard, 1.0)
        if self.wake:
            self._wake(awake)

    def follow(self, gated: GatedModel, kept: Arch) -> None:
        """Move ``gated`` from now on; what was removed counts as closed for good."""
        sizes = kept.sizes(self.gated.space.free)
        self.removed.update({name: axis.size - sizes[name] for name, axis in self.gated.space.free.items()})
        super().follow(gated, kept)

    def left(self) -> Arch:
        """The units whose gates are not closed."""
        return Arch({name: self._keep(name).nonzero().flatten().tolist() for name in self.gated.space.free})

    def _keep(self, name: str) -> Tensor:
        """Which units (c) of an axis are not closed for good."""
        return self.gated.gate(name).get_buffer("keep")

    def _norms(self, name: str) -> Tensor:
        """Squared norms (c) of the weights that write each unit, of what they read that is not closed for good."""
        return norms(self.gated, name, {each: self._keep(each) for each in self.gated.space.free})

    def _wake(self, awake: dict[str, Tensor]) -> None:
        """Let gradients reach all units that are not awake (0) although no weight writes them."""
        axes = self.gated.axes
        for places, least in ((SHIFTS, -torch.inf), (SCALES, 0.0)):
            for name in parameters(axes, places):
                value, asleep = tensor_of(self.gated.backbone, name), axes.mask(axes.tensors[name][0], awake) == 0
                value[asleep & (value >= least) & (value <= 0)] = AWAKE
