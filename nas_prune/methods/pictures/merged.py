"""Compensation (ours): the unit that stays takes over what the layers after it read of one that goes.

Where a closed unit u and its twin j say alike, u = f j with f = <u, j> / <j, j> over what a layer reads of them, so the
columns of that layer's weight that read j take over f times those that read u. Of twins that say the same, f = 1 and
nothing is lost at all.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, axes_of, looking, mixing, owners
from nas_prune.methods.scores import Batches
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.walk import Site

Twins = Mapping[str, Mapping[int, int]]  # axis -> unit that goes -> unit that takes over
Moments = Mapping[str, Mapping[str, Tensor]]  # path of a layer -> axis that it reads -> how much units agree (c c)


def merged(gated: GatedModel, moments: Moments, twins: Twins) -> dict[str, Tensor]:
    """Weights of the layers that read the axes, with what was taken over. ``moments``: as ``moments_of`` finds them."""
    state, edits = gated.backbone.state_dict(), dict[str, Tensor]()
    for reader in mixing(gated).values():
        for name, columns in _columns(gated, reader):
            if not twins.get(name):
                continue
            weight, moment = edits.get(reader.weight, state[reader.weight].clone()), moments[reader.path][name]
            for gone, stays in twins[name].items():
                factor = moment[gone, stays] / moment[stays, stays] if moment[stays, stays] > 0 else 0.0
                weight[:, columns[stays]] += (factor * weight[:, columns[gone]]).to(weight)
            edits[reader.weight] = weight
    return edits


def moments_of(gated: GatedModel, batches: Batches) -> Moments:
    """How much each two units agree in what is read of them, over all images."""
    found, read = dict[str, dict[str, Tensor]](), mixing(gated)

    def look(path: str, site: Site, x: Tensor) -> None:
        entries, own = x.movedim(site.dim, 0).flatten(1), found.setdefault(path, {})
        for name, columns in _columns(gated, read[path]):
            rows = entries[columns.to(x.device)].flatten(1).double()
            own[name] = own.get(name, 0.0) + rows @ rows.T

    sites = {path: reader.site for path, reader in read.items()}
    with evaluating(gated), torch.no_grad(), looking(gated.backbone, sites, look):
        for images, _ in batches:
            gated.opened()(images)
    return {path: {name: moment.cpu() for name, moment in own.items()} for path, own in found.items()}


def _columns(gated: GatedModel, reader: Reader) -> Iterator[tuple[str, Tensor]]:
    """The axes that a layer reads, and the columns (c n) of its weight that read each unit."""
    for name in axes_of(gated, reader.term):
        owner = owners(gated, name, reader.term)
        order = owner.argsort(stable=True)[int((owner < 0).sum()) :]
        yield name, order.reshape(gated.axes[name].size, -1)
