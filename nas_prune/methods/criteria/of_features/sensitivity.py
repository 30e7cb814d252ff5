"""Sensitivity: a unit matters as much as the largest share that it ever has in what a layer adds up.

Liebenwein et al., "Provable Filter Pruning for Efficient Neural Networks" (arXiv 1911.07412, section 3). For an image,
a position, an output i of a layer and a sign of its weights, the share of entry e among all that are summed there is

    g(e) = W[i, e] a[e] / sum over e' of W[i, e'] a[e'],    W of that sign alone, a >= 0, no bias

and the sensitivity of a unit is the largest of its shares over all images, positions, outputs, taps and signs, in
[0, 1]. Where activations are negative, too, their positive and their negated negative parts are looked at one after the
other. A sum that is no larger than the machine's epsilon has no shares. A few hundred images are enough: the paper's
number grows with the logarithm of the number of neurons.

Ours: of several layers that read one axis (the stages of a residual network), the largest, which is at least as large
as the sensitivity in each of them, so what the paper proves holds for each of them. Axes that no convolution or
linear layer reads and sums over score as the best unit does. Whoever reads nothing of a unit (its outgoing weights are
zero) gives it the score zero. The model is in eval mode with all units open; the maximum over few images is a lower
bound of the true one, which is as the paper has it.

Cost: a forward pass, and twice its multiply-adds again, one by one.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from nas_prune.methods.criteria.criterion import criteria, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, best_of_units, first_images, mixing, read, weight_of
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch

IMAGES = 200  # about what the authors' formula, 3 ln(8 e E / 1e-16) of E neurons, gives for networks of this size
AT_ONCE = 4  # images, as all patches of all of them are held


@criteria.register("sensitivity")
def sensitivity(gated: GatedModel, batches: Batches, *, images: PositiveInt = IMAGES) -> dict[str, Tensor]:
    """Scores (c) per free axis, from the first ``images`` of the batches. Raises DataError without a batch."""
    of, largest, dense = mixing(gated), dict[str, Tensor](), Arch.dense(gated.axes)
    for x in first_images(batches, images, "the criterion sensitivity"):
        for few in torch.split(x, AT_ONCE):
            for path, read_there in read(gated, dense, of.values(), few).items():
                found = _shares(gated, of[path], read_there)
                largest[path] = torch.maximum(found, largest[path]) if path in largest else found
    return with_the_rest(gated, best_of_units(gated, largest, of))


def _shares(gated: GatedModel, reader: Reader, x: Tensor) -> Tensor:
    """The largest share (n) that each entry that a layer reads has in any of its sums."""
    patches = reader.patches(gated.backbone, x).flatten(1)
    weight = weight_of(gated, reader).flatten(1)
    parts = [part for part in (patches.clamp(min=0), -patches.clamp(max=0)) if bool(part.any())]
    signs = [sign for sign in (weight.clamp(min=0), -weight.clamp(max=0)) if bool(sign.any())]
    largest = patches.new_zeros(patches.shape[1])
    for part in parts:
        for sign in signs:
            largest = torch.maximum(largest, largest_shares(sign, part))
    return largest.reshape(len(weight_of(gated, reader)[0]), -1).amax(1)


def largest_shares(weight: Tensor, patches: Tensor) -> Tensor:
    """The largest share (e) of each entry in the sums of ``weight`` (o e) over ``patches`` (p e), neither negative."""
    sums, columns = weight @ patches.T, patches.T.contiguous()
    inverse = torch.where(sums > torch.finfo(torch.float32).eps, 1 / sums, 0.0)
    found = [row * (columns * each).amax(1) for row, each in zip(weight, inverse, strict=True)]  # o e p at once is much
    return torch.stack(found).amax(0).clamp(max=1)
