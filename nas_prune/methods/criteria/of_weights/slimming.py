"""Network Slimming: a unit matters as much as the scale that its normalisation gives it.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (arXiv 1708.06519, section 3): the
importance of a channel is |gamma| of its BatchNorm, compared over all layers by one threshold. The paper trains with an
L1 penalty on gamma before; this is the score alone.

Ours: any normalisation with a scale counts (batch, instance, group, layer, RMS); where several stand on an axis, as in
a residual stage, the mean of |gamma| over all of them. An axis on which none stands (hidden units of an MLP, heads,
stripes, branches, candidates) scores as the best unit does, and so stays; where none has one, it is an error.

Cost: weights are read once.
"""

from collections.abc import Iterator

from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.methods.criteria.criterion import criteria, means_of_units, with_the_rest
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.roles.scales import SCALES, parameters
from nas_prune.tracing.terms import Term


@criteria.register("slimming")
def slimming(gated: GatedModel, batches: Batches) -> dict[str, Tensor]:  # noqa: ARG001
    """Scores (c) per free axis; batches are not looked at. Raises SpaceError where no axis has a norm with a scale."""
    found = scales_of_norms(gated)
    if not found:
        raise SpaceError(
            "Network Slimming looks at the scales of normalisations, and none stands on an axis of this search space; "
            "choose another criterion, such as magnitude"
        )
    return with_the_rest(gated, found)


def scales_of_norms(gated: GatedModel) -> dict[str, Tensor]:
    """The mean of |gamma| (c) over the norms on an axis, of those free axes that have one."""
    return means_of_units(gated, list(_scales(gated)))


def _scales(gated: GatedModel) -> Iterator[tuple[Term, Tensor]]:
    """What the entries of each |gamma| (n) of the backbone are, and their values, each parameter once."""
    for name in parameters(gated.axes, SCALES):
        yield gated.axes.tensors[name][0], tensor_of(gated.backbone, name).detach().abs()
