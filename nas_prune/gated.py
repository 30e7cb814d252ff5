"""A backbone with gates: the same modules, parameters and state_dict keys, and one gate per free axis.

Gates act where an axis is read. So whatever lies between (bias, BatchNorm, activation), a closed unit contributes
exactly nothing, and the derived model computes exactly what the gated one computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.arch import Arch
from nas_prune.errors import SpaceError
from nas_prune.gates import Gate, gates
from nas_prune.intercept import Board, intercept, plain_copy
from nas_prune.space import SearchSpace
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Cat, Prod, Term, Var, leaves, resolve


class GatedModel(nn.Module):
    """``model`` with a gate on every free axis of ``space``.

    ``gate``: a registered name or a Gate class; ``options``: the gate's keyword options.
    The model is gated in place (hooks on its modules); ``plain()`` gives a copy without gates.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace | Axes,
        gate: str | type[Gate] = "mask",
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.all(space)
        if not self.space.free:
            raise SpaceError("there is nothing to gate: every axis is frozen. `axes[name].frozen` says why")
        self.backbone = model
        kind = gates[gate] if isinstance(gate, str) else gate
        self.writers = {name: _writers(self.space.axes, name) for name in self.space.free}
        self.gates = nn.ModuleDict()
        for name, axis in self.space.free.items():
            fan_in = [features.shape[1] for features in self.weights(name)]
            self.gates[_key(name)] = kind(axis.size, fan_in, **(options or {}))
        self._fixed: list[Fixed] = []
        self._board = Board()
        self._sites = [site for site in self.axes.walk.sites if self._touches(site.term)]
        intercept(model, self.axes, self._sites, self._board, None if kind.mix is Gate.mix else kind.mix)

    @property
    def axes(self) -> Axes:
        """The axes, those outside the search space frozen."""
        return self.space.axes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward, gated."""
        keep = self._fixed[-1].keep() if self._fixed else self.gate_values()
        self._board.open(keep, [self._mask(site.term, site.how, keep) for site in self._sites])
        return self.backbone(*args, **kwargs)

    def gate_values(self) -> dict[str, Tensor]:
        """What the gates say now: keep values (c) per axis, never less than the minimum width open."""
        values = {}
        for name in self.space.free:
            score = self._gate(name).score(self.weights(name))
            keep = self._gate(name).open(score)
            best = score.detach().topk(self.space.minimum[name]).indices
            forced = torch.zeros_like(keep).scatter(0, best, 1.0)
            values[name] = keep + (forced * (1 - keep)).detach()
        return values

    def scores(self) -> dict[str, Tensor]:
        """Gate scores (c) per axis; a unit is open where its score is >= 0."""
        return {name: self._gate(name).score(self.weights(name)).detach() for name in self.space.free}

    def sizes(self) -> dict[str, Tensor]:
        """Open units per axis in the last forward pass; gradients reach the gates."""
        return {name: keep.sum() for name, keep in self._board.keep.items()}

    def arch(self) -> Arch:
        """The architecture that the gates have decided on."""
        kept = {}
        for name, score in self.scores().items():
            width = max(int((score >= 0).sum()), self.space.minimum[name])
            kept[name] = score.topk(width).indices.tolist()
        return Arch(kept)

    def fixed(self, arch: Arch) -> Fixed:
        """The model computing ``arch``, whatever the gates say: ``with gated.fixed(arch): ...``, or called on inputs.

        Raises ArchError if the architecture does not fit the axes.
        """
        arch.check(self.axes)
        return Fixed(self, arch)

    def plain(self) -> nn.Module:
        """A copy of the backbone without gates."""
        return plain_copy(self.backbone)

    def weights(self, name: str) -> list[Tensor]:
        """The weights that write an axis, one matrix (c n) per member, row u holding all that belongs to unit u."""
        result = []
        for tensor, dim, order in self.writers[name]:
            rows = self.backbone.get_parameter(tensor).movedim(dim, 0).flatten(1)
            size = self.space.axes[name].size
            result.append(rows if order is None else rows[order.to(rows.device)].reshape(size, -1))
        return result

    def _gate(self, name: str) -> Gate:
        gate = self.gates[_key(name)]
        assert isinstance(gate, Gate)
        return gate

    def _touches(self, term: Term) -> bool:
        return any(self.axes.variables.get(var) in self.space.free for var in leaves(term))

    def _mask(self, term: Term, how: str, keep: dict[str, Tensor]) -> Tensor | None:
        """The mask of one site; None where a norm is open anyway, so that it computes bit for bit what it did."""
        mask = self.axes.mask(term, keep)
        learning = self.training and mask.requires_grad
        return None if how != "mask" and not learning and bool((mask == 1).all()) else mask


class Fixed:
    """A gated model while it computes one architecture. Blocks may be nested; the innermost counts."""

    def __init__(self, gated: GatedModel, arch: Arch) -> None:
        self.gated, self.arch = gated, arch
        self._keep: dict[str, Tensor] = {}

    def __enter__(self) -> GatedModel:
        self.gated._fixed.append(self)
        return self.gated

    def __exit__(self, *error: object) -> None:
        self.gated._fixed.pop()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output for these inputs."""
        with self:
            return self.gated(*args, **kwargs)

    def keep(self) -> dict[str, Tensor]:
        """Keep vector (c) of 0 and 1 per axis, where and as precise as the model is now."""
        like = next(self.gated.backbone.parameters())
        if not self._keep or next(iter(self._keep.values())).type() != like.type():
            for name, axis in self.gated.space.free.items():
                units = torch.tensor(self.arch.kept.get(name, range(axis.size)), device=like.device)
                keep = torch.zeros(axis.size, dtype=like.dtype, device=like.device)
                self._keep[name] = keep.index_fill(0, units, 1.0)
        return self._keep


def _key(name: str) -> str:
    """Axis names hold dots, module names may not."""
    return name.replace(".", "/")


def _writers(axes: Axes, name: str) -> list[tuple[str, int, Tensor | None]]:
    """(parameter, dimension, row order) of each weight that writes an axis; row order None: rows are the units."""
    parameters = [member for member in axes[name].members if member.tensor not in axes.walk.captured.buffer_names]
    members = [member for member in parameters if member.role == "write"] or parameters[:1]
    variable = next(var for var, known in axes.variables.items() if known == name)
    result = []
    for member in members:
        unit = _unit_of(axes.tensors[member.tensor][member.dim], variable)
        order = unit.argsort(stable=True)[int((unit < 0).sum()) :]
        identity = torch.equal(order, torch.arange(axes[name].size))
        result.append((member.tensor, member.dim, None if identity else order))
    return result


def _unit_of(term: Term, variable: Var) -> Tensor:
    """For each index of a term, the unit of ``variable`` that it belongs to, or -1."""
    term = resolve(term)
    if isinstance(term, Cat):
        return torch.cat([_unit_of(part, variable) for part in term.parts])
    if isinstance(term, Prod):
        unit = torch.tensor([-1])
        for factor in term.parts:
            unit = torch.maximum(unit[:, None], _unit_of(factor, variable)[None, :]).flatten()
        return unit
    return torch.arange(term.size) if term is variable else torch.full((term.size,), -1)
