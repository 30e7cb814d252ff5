"""SOSP: what the loss would change by if units were removed together, to second order, all layers in one.

Nonnenmacher et al., "SOSP: Efficiently Capturing Global Correlations by Second-Order Structured Pruning" (arXiv
2110.11395). theta_s holds the weights of structure s, and zero elsewhere; removing the structures of M changes the loss
by -sum of theta_s g + 1/2 sum over pairs of M of theta_s H theta_t, g and H being its gradient and its Hessian.

    SOSP-H   |theta_s g| + 1/2 |theta_s (H sum over all t of theta_t)|: one product with the Hessian for all structures
    SOSP-I   sum over s in M of |theta_s g| + 1/2 sum over s, t in M of |theta_s H theta_t|, M growing by the structure
             for which it rises least; H of Gauss and Newton, the mean over images of J^T (diag p - p p^T) J, J the
             slope of the logits, p the softmax

Ours: a structure is what reads a unit, where the paper has what writes it. So a unit is one structure whatever its axis
runs through, and no norm lies between; and gates z = 1 multiply it, so theta_s g = dL / dz_s, theta_s H theta_t =
d2L / dz_s dz_t, and nothing is asked of single weights. The model is in eval mode: the loss is that of the network that
is derived. In SOSP-I a unit scores what the sum rises by as it joins M. From one unit to the next this never falls, so
one threshold (the selector "ranked") removes them in the paper's order, and what has gone adds up to the paper's sum.
There is no public code, and of the paper's text only parts were at hand: the formulas are as they are known of it.

Cost: sosp_h a forward and three backward passes per batch; sosp_i a forward pass per image, and a backward pass per
class.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from nas_prune.methods.criteria.criterion import at_least_one, criteria, one_by_one
from nas_prune.methods.criteria.of_loss.twice import twice_differentiable
from nas_prune.methods.criteria.of_loss.weights import Weights, added, along, check, slopes
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating

IMAGES = 256  # ours; 1000 in the paper

Loss = Callable[[Tensor, Tensor], Tensor]
cross_entropy = partial(F.cross_entropy, reduction="sum")


@criteria.register("sosp_h")
def sosp_h(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:
    """Scores (c) per free axis, in units of the mean cross-entropy, none of them negative.

    Raises DataError without a batch, DivergedError where a loss or a derivative is not a number.
    """
    slope, curved = second_order(gated, batches)
    return {name: each.abs() + curved[name].abs() / 2 for name, each in slope.items()}


@criteria.register("sosp_i")
def sosp_i(gated: GatedModel, batches: Batches, *, images: PositiveInt = IMAGES) -> dict[str, Tensor]:
    """The same of the first ``images`` of the batches, with a backward pass for each of them and class.

    Holds a number for each pair of units. Raises as ``sosp_h`` does.
    """
    slope, pairs = gauss_newton(gated, batches, images=images)
    sizes = {name: axis.size for name, axis in gated.space.free.items()}
    return dict(zip(sizes, torch.split(rises(slope.abs(), pairs.abs()), list(sizes.values())), strict=True))


def second_order(gated: GatedModel, batches: Batches, loss: Loss = cross_entropy) -> tuple[Weights, Weights]:
    """theta_s g and theta_s H sum over t of theta_t, (c) per free axis, of the mean of the loss over all images.

    ``loss``: the sum over a batch, of its logits and labels.
    """
    fixed, opened = at_least_one(batches, "SOSP"), gated.opened(requires_grad=True)
    images, keep = sum(len(labels) for _, labels in fixed), opened.keep()
    slope, curved = dict[str, Tensor](), dict[str, Tensor]()
    with evaluating(gated), twice_differentiable():
        for x, labels in fixed:
            first = slopes(loss(opened(x), labels) / images, keep, again=True)
            slope, curved = added(slope, first), added(curved, slopes(along(first, keep), keep))
    return slope, curved


def gauss_newton(gated: GatedModel, batches: Batches, *, images: int) -> tuple[Tensor, Tensor]:
    """theta_s g (s) and theta_s H theta_t (s t) of Gauss and Newton, over all units of all free axes in their order."""
    opened, count = gated.opened(requires_grad=True), 0
    keep = opened.keep()
    slope = torch.zeros_like(torch.cat(list(keep.values()))).detach()
    pairs = slope.new_zeros(len(slope), len(slope))
    with evaluating(gated), torch.enable_grad():
        for image, label in one_by_one(batches, images, "SOSP"):
            logits = opened(image)
            first, rows = _of_image(logits, label, keep)
            check(logits, {"a unit": rows})
            slope, pairs, count = slope + first, pairs.addmm_(rows.T, rows), count + 1
    return slope / count, pairs / count


def _of_image(logits: Tensor, label: Tensor, keep: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The slope (s) of an image's loss, and rows (k s) whose outer squares add up to Gauss' and Newton's matrix."""
    share = logits.detach().softmax(1)
    root = share.sqrt()
    factor = torch.diag(root[0]) - root.T * share  # (k k), of which the outer squares add up to diag p - p p^T
    downhill = share - F.one_hot(label, share.shape[1])
    rows = [_down(logits, row[None], keep) for row in torch.cat([factor, downhill])]
    return rows[-1], torch.stack(rows[:-1])


def _down(logits: Tensor, row: Tensor, keep: Mapping[str, Tensor]) -> Tensor:
    """The gradient (s) of a weighted sum of logits with respect to all gates."""
    found = torch.autograd.grad(logits, list(keep.values()), row, retain_graph=True, materialize_grads=True)
    return torch.cat(found)


def rises(single: Tensor, pairs: Tensor) -> Tensor:
    """What the sum over M rises by as each unit joins it (s), always that for which it rises least.

    ``single`` (s): |theta_s g|; ``pairs`` (s s): |theta_s H theta_t|.
    """
    waiting = single + pairs.diagonal() / 2
    found = torch.empty_like(waiting)
    for _ in range(len(waiting)):
        unit = waiting.argmin()
        found[unit] = waiting[unit]
        waiting += pairs[unit]
        waiting[unit] = torch.inf
    return found
