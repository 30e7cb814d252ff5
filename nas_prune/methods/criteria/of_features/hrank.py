"""HRank: a unit matters as much as its feature maps hold independent rows, that is, as their rank is high.

Lin et al., "HRank: Filter Pruning using High-Rank Feature Map" (arXiv 2002.10179, section 3.2): the score of filter j
of a layer is the mean over images of Rank(o_j), o_j (h w) being its feature map; a few hundred images are enough, since
the mean hardly varies with them.

Ours: a map is looked at where a convolution or linear layer reads it (behind norm, activation, residual sum), which
is where closing a unit takes it away; of several readers, the mean. The model is in eval mode with all units open. An
axis that is read as no map (tokens, pooled features, branches, candidates) scores as the best unit does, and so stays;
where none is read as one, it is an error. Ranks depend on the size of the maps and so compare within an axis: the paper
sets the share of each layer by hand, and the selector ``uniform`` keeps the same of all.

Cost: a forward pass, and a singular value decomposition of every map.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from nas_prune.base.errors import DataError, SpaceError
from nas_prune.methods.criteria.criterion import criteria, means_of_units, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import looking, readers
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.walk import Site

IMAGES = 500  # section 4.1


@criteria.register("hrank")
def hrank(gated: GatedModel, batches: Batches, *, images: PositiveInt = IMAGES) -> dict[str, Tensor]:
    """Scores (c) per free axis, from the first ``images`` of the batches: one singular value decomposition per map.

    Raises DataError without a batch, SpaceError where no axis is read as a map.
    """
    sites, ranks, left = readers(gated), dict[str, list[Tensor]](), images

    def look(path: str, site: Site, x: Tensor) -> None:
        if x.ndim == 4 and x.shape[site.dim] == site.term.size:
            ranks.setdefault(path, []).append(_ranks(x.movedim(site.dim, 1)))

    with evaluating(gated), torch.no_grad(), looking(gated.backbone, sites, look):
        for x, _ in batches:
            gated.opened()(x[:left])
            left = max(0, left - len(x))
            if not left:
                break
    if left == images:
        raise DataError("HRank needs at least one batch of images; there was none")
    means = [(sites[path].term, torch.cat(each).mean(0)) for path, each in ranks.items()]
    found = means_of_units(gated, means)
    if not found:
        raise SpaceError(
            "HRank looks at maps (h w), and no convolution or linear layer reads an axis of this search space as one; "
            "choose another criterion, such as magnitude"
        )
    return with_the_rest(gated, found)


def _ranks(maps: Tensor) -> Tensor:
    """Of maps (b c h w), the rank of each (b c)."""
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    found: Tensor = torch.linalg.matrix_rank(precise)
    return found.to(precise.dtype)
