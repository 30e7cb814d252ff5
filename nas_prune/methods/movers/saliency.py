"""ManiDP's thresholds: after each epoch, what a saliency has to reach, so that fewer and fewer channels do.

Tang et al., "Manifold Regularized Dynamic Network Pruning" (CVPR 2021, arXiv 2103.05861), as in the public code: after
each epoch t >= 1, xi of a layer is the ceil(r_t c)-th largest of the mean saliencies of its channels over all images,

    r_t = 1 - (1 - r) closed(t),   closed(t) = (1 - cos(pi (t + 1) / E)) / 2  by the schedule ``cosine``

A threshold for means is applied to single images, so the share that is really computed is another one than r; it is
measured. Ours: where r is not given, it is what uniform widths within the budget leave of each axis. Of several
processes, the thresholds are the mean of theirs.
"""

import torch
import torch.distributed as dist

from nas_prune.base.errors import SpaceError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.dynamic import Dynamic
from nas_prune.methods.movers.mover import Aim, Mover, movers
from nas_prune.methods.selectors.uniform import uniform_widths


@movers.register("saliency")
class SaliencyThresholds(Mover):
    """``ratio``: r, the share of the channels of a layer whose mean saliency is over its threshold in the end. Raises
    SpaceError for a model whose gates do not look at images."""

    def __init__(self, gated: GatedModel, aim: Aim, *, ratio: float | None = None) -> None:
        super().__init__(gated, aim)
        dynamic = [name for name in gated.space.alone if isinstance(gated.gate(name), Dynamic)]
        if not dynamic:
            raise SpaceError("the mover `saliency` moves thresholds of gates that look: set `gate.name: dynamic`")
        left = uniform_widths(gated.space, aim.budget.cost, aim.budget.limit) if ratio is None else {}
        self.share = {name: ratio or left[name] / gated.axes[name].size for name in dynamic}

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        """New thresholds, after the second epoch at the earliest, and new counts."""
        closed = self.aim.schedule(epoch, self.aim.epochs).closed
        for name, share in self.share.items():
            gate = self.gated.gate(name) if name in self.gated.space.free else None
            if isinstance(gate, Dynamic):
                _average(gate)
                gate.turn(1 - (1 - share) * closed if epoch else None)


def _average(gate: Dynamic) -> None:
    """Let what a gate has seen be the mean over all processes."""
    if dist.is_available() and dist.is_initialized():
        for seen in (gate.total, gate.fired, gate.strength, gate.images):
            dist.all_reduce(seen)
            seen /= dist.get_world_size()
