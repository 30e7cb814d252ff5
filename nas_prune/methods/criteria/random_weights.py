"""Networks that have learnt nothing, as criteria look at them that are made for such ones.

Ours. The last norm of a residual branch often begins with scales of 0 (timm's ``zero_init_last``), so that the branch
begins with nothing to say, and every unit inside would score 0; here such scales count as 1. And statistics of
BatchNorm that come of no batch (0 and 1) say nothing of the signals: those of the batch are taken, as the papers do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.roles.scales import SCALES, parameters


def silent_scales(gated: GatedModel) -> list[Tensor]:
    """The scales of norms that are 0 for all units."""
    scales = [tensor_of(gated.backbone, name).detach() for name in parameters(gated.axes, SCALES)]
    return [each for each in scales if not bool(each.any())]


@contextmanager
def awake(gated: GatedModel, fewest: int) -> Iterator[None]:
    """In the block no norm of a model in eval mode says 0, and a BatchNorm that saw no batch looks at that which it is
    given, unless the ``fewest`` images of any are one. Afterwards all is as it was.
    """
    silent = silent_scales(gated)
    unseen = [each for each in gated.backbone.modules() if fewest > 1 and _unseen(each)]
    former = {buffer: buffer.clone() for norm in unseen for buffer in norm.buffers()}
    try:
        for scale in silent:
            scale.fill_(1)
        for norm in unseen:
            norm.training = True
        yield
    finally:
        for scale in silent:
            scale.zero_()
        for norm in unseen:
            norm.training = False
        with torch.no_grad():
            for buffer, value in former.items():
                buffer.copy_(value)


def _unseen(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm that follows batches, and has seen none."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.num_batches_tracked is None:
        return False
    return int(module.num_batches_tracked) == 0
