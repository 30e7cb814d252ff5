"""Gate a smaller model as the larger one was, so that a search goes on with what is left.

The smaller model is traced anew: what its code can express is found out, not assumed. Its axes get the names that they
had, each gate is narrowed to the units that are left, and says of them what it said. Ours.
"""

import copy

import torch
from torch import Tensor, nn

from nas_prune.derivation.derive import zero_inputs
from nas_prune.derivation.removal import Places, Removal
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import Gate
from nas_prune.tracing import Axes
from nas_prune.tracing.roles.writers import numbered, unit_rows, writers


def gated_again(gated: GatedModel, removal: Removal) -> tuple[GatedModel, Places] | None:
    """The smaller model with gates, and the places that its whole state had in that of the larger one; None where it
    has nothing to gate.

    An axis that can no longer be found, of a single unit say, is frozen as it is.
    """
    axes = _traced(gated, removal.small)
    space = gated.space.narrowed(axes.renamed(_names(gated, removal, axes)))
    if not space.free:
        return None
    left = {name: (_units(gated, removal, name), _columns(gated, removal, name)) for name in space.free}
    sizes = removal.kept.sizes(gated.space.free) | {name: int(size) for name, size in gated.settled.items()}
    settled = {name: size for name, size in sizes.items() if name not in space.free}
    made = {name: gated.gate(name).narrowed(*each) for name, each in left.items()}
    again = GatedModel(removal.small, space, made, settled=settled)
    with torch.no_grad():
        before, now = gated.scores(), again.scores()
        for name, (units, _) in left.items():
            again.gate(name).go_on(before[name][units], now[name])
    places = {f"backbone.{name}": place for name, place in removal.places.items()}
    paths = {gate: path for path, gate in again.named_modules()}
    for name, each in left.items():
        path, found = paths[again.gate(name)], _places(gated.gate(name), *each)
        places |= {f"{path}.{own}": place for own, place in found.items()}
    return again.train(gated.training), places


def _traced(gated: GatedModel, small: nn.Module) -> Axes:
    """The axes of the smaller model, for inputs of the same shapes."""
    captured = gated.axes.walk.captured
    leaves = sorted({leaf.path for leaf in captured.leaves})
    return trace(small, zero_inputs(small, captured, single=False), leaves=leaves)


def _names(gated: GatedModel, removal: Removal, axes: Axes) -> dict[str, str]:
    """Name of each axis of the smaller model -> its name before: that of the axis whose units its units were."""
    names = dict[str, str]()
    for name, axis in axes.items():
        known = [old for old in gated.space.free if old not in names.values() and gated.axes[old].kind == axis.kind]
        same = [old for old in known if (old == name if not axis.members else _is(gated, removal, old, axes, name))]
        names |= {name: same[0]} if same else {}
    taken = set(names.values())
    return names | {name: f"{name}:left" for name in axes if name not in names and name in taken}


def _is(gated: GatedModel, removal: Removal, old: str, axes: Axes, new: str) -> bool:
    """Whether the units of an axis of the smaller model are, one by one, those that are left of an old axis."""
    kept, written = _units(gated, removal, old), {writer[0]: writer for writer in gated.writers[old]}
    if len(kept) != axes[new].size:
        return False
    for tensor, dim, order in writers(axes, new) if axes[new].frozen is None else ():
        if tensor in written:
            numbers = numbered(gated.backbone.state_dict()[tensor])
            before = unit_rows(numbers, written[tensor][1], written[tensor][2], gated.axes[old].size)
            unit = torch.full((numbers.numel(),), -1)
            unit[before] = torch.arange(len(before))[:, None].expand_as(before)
            now = unit_rows(removal.places[tensor], dim, order, len(kept))
            return torch.equal(unit[now], kept[:, None].expand_as(now))
    return False


def _units(gated: GatedModel, removal: Removal, name: str) -> Tensor:
    """The units (c') that are left of an axis."""
    return torch.tensor(removal.kept.kept.get(name, range(gated.axes[name].size)))


def _columns(gated: GatedModel, removal: Removal, name: str) -> list[Tensor | None]:
    """The numbers (n') of a unit that are left in each weight that writes an axis; None: the weight went."""
    columns, state = list[Tensor | None](), gated.backbone.state_dict()
    for tensor, dim, order in gated.writers[name]:
        place = removal.places.get(tensor)
        rows = unit_rows(numbered(state[tensor]), dim, order, gated.axes[name].size)
        row = rows[_units(gated, removal, name)[0]]
        columns.append(None if place is None else torch.isin(row, place).nonzero().flatten())
    return columns


def _places(gate: Gate, units: Tensor, columns: list[Tensor | None]) -> dict[str, Tensor]:
    """Where the numbers of a narrowed gate's parameters and buffers were."""
    probe = copy.deepcopy(gate).cpu().double()
    with torch.no_grad():
        for tensor in probe.state_dict().values():
            tensor.copy_(numbered(tensor))
    return {name: value.long() for name, value in probe.narrowed(units, columns).state_dict().items()}
