"""Which weights write an axis, and which rows of them belong to which unit: what gates and criteria look at."""

import torch
from torch import Tensor

from nas_prune.tracing.axes import Axes
from nas_prune.tracing.terms import Cat, Prod, Term, Var, resolve


def writers(axes: Axes, name: str) -> list[tuple[str, int, Tensor | None]]:
    """(parameter, dimension, row order) of each weight that writes an axis; row order None: rows are the units.

    No weight writes a bit, and stripes are their own rows.
    """
    if not axes[name].members:
        return []
    parameters = [member for member in axes[name].members if member.tensor not in axes.walk.captured.buffer_names]
    members = [member for member in parameters if member.role == "write"] or parameters[:1]
    variable = next(var for var, known in axes.variables.items() if known == name)
    result = []
    for member in members:
        unit = unit_of(axes.tensors[member.tensor][member.dim], variable)
        order = unit.argsort(stable=True)[int((unit < 0).sum()) :]
        identity = torch.equal(order, torch.arange(len(unit)))  # of a concatenation, the first part is not all rows
        result.append((member.tensor, member.dim, None if identity else order))
    return result


def striped(name: str) -> str:
    """The weight (n c i j) that an axis of stripes is about."""
    return f"{name.removesuffix('.stripes')}.weight"


def numbered(tensor: Tensor) -> Tensor:
    """A tensor of this shape whose numbers say where they are, flattened; on the CPU."""
    return torch.arange(tensor.numel()).reshape(tensor.shape)


def unit_rows(tensor: Tensor, dim: int, order: Tensor | None, units: int) -> Tensor:
    """A weight as a matrix (c n), row u holding all that belongs to unit u of an axis that it writes."""
    rows = tensor.movedim(dim, 0)
    rows = rows.reshape(len(rows), -1)
    return (rows if order is None else rows[order]).reshape(units, -1)


def unit_of(term: Term, variable: Var) -> Tensor:
    """For each index of a term, the unit of ``variable`` that it belongs to, or -1."""
    term = resolve(term)
    if isinstance(term, Cat):
        return torch.cat([unit_of(part, variable) for part in term.parts])
    if isinstance(term, Prod):
        unit = torch.tensor([-1])
        for factor in term.parts:
            unit = torch.maximum(unit[:, None], unit_of(factor, variable)[None, :]).flatten()
        return unit
    return torch.arange(term.size) if term is variable else torch.full((term.size,), -1)
