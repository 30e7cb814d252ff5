"""A backbone with gates: the same modules, parameters and state_dict keys, and one gate per free axis.

Gates act where an axis is read. So whatever lies between (bias, BatchNorm, activation), a closed unit contributes
exactly nothing, and the derived model computes exactly what the gated one computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from nas_prune.base.axis import Kind
from nas_prune.base.errors import SpaceError
from nas_prune.methods.gates import Gate, gates
from nas_prune.methods.intercept import Board, intercept, plain_copy, release
from nas_prune.ops import Choice
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import tensor_of, unwrapped
from nas_prune.tracing.graph.multihead import close_up, open_up
from nas_prune.tracing.space import SearchSpace
from nas_prune.tracing.terms import Term, leaves
from nas_prune.tracing.writers import writers


class GatedModel(nn.Module):
    """``model`` with a gate on every free axis of ``space``.

    ``gate``: a registered name or a Gate class; ``options``: the gate's keyword options; or both per kind of axis,
    ``kinds={"operation": ("softmax", {})}``. The candidates of a choice share one gate.
    The model is gated in place (hooks on its modules, which replace those of an earlier GatedModel); ``plain()`` gives
    a copy without gates.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace | Axes,
        gate: str | type[Gate] = "mask",
        *,
        options: Mapping[str, Any] | None = None,
        kinds: Mapping[Kind, tuple[str | type[Gate], Mapping[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.all(space)
        if not self.space.free:
            raise SpaceError("there is nothing to gate: every axis is frozen. `axes[name].frozen` says why")
        self.backbone = model = unwrapped(model)
        for board in release(model):
            board.released = True
        open_up(model)
        self.writers = {name: writers(self.space.axes, name) for name in self.space.free}
        for name, written in self.writers.items():  # buffers, so that they are where the weights are
            for index, (_, _, order) in enumerate(written):
                self.register_buffer(_order(name, index), order, persistent=False)
        self.deciders = self.space.choices | {name: (name,) for name in self.space.alone}
        self.gates = nn.ModuleDict()
        for name, members in self.deciders.items():
            own, extra = (kinds or {}).get(self.axes[members[0]].kind, (gate, options or {}))
            kind = gates[own] if isinstance(own, str) else own
            size, fan_in = sum(self.axes[member].size for member in members), [w.shape[1] for w in self.weights(name)]
            made = kind.on(self.axes[members[0]].kind, size, fan_in, striped=bool(self._stripes(name)), **extra)
            self.gates[_key(name)] = made
        mix = (gates[gate] if isinstance(gate, str) else gate).mix
        self._fixed: list[Fixed] = []
        self._board = Board()
        self._sites = [site for site in self.axes.walk.sites if self._touches(site.term)]
        intercept(model, self.axes, self._sites, self._board, None if mix is Gate.mix else mix)

    @property
    def axes(self) -> Axes:
        """The axes, those outside the search space frozen."""
        return self.space.axes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward, gated. Raises SpaceError where another GatedModel has taken the backbone."""
        if self._board.released:
            raise SpaceError("another GatedModel was made of this backbone since; use that one, or gate a copy")
        keep = self._fixed[-1].keep() if self._fixed else self._said()
        self._board.open(keep, [self._mask(site.term, site.how, keep) for site in self._sites])
        try:
            return self.backbone(*args, **kwargs)
        finally:
            self._board.close()

    def _said(self) -> dict[str, Tensor]:
        """What the gates say, in full precision even where the backbone computes in less: half a unit is none."""
        place = next(self.backbone.parameters()).device.type
        with torch.autocast(place, enabled=False) if torch.amp.is_autocast_available(place) else nullcontext():
            return self.gate_values()

    def gate_values(self) -> dict[str, Tensor]:
        """What the gates say now: keep values (c) per axis, never less than the minimum width open."""
        values: dict[str, Tensor] = {}
        for name, members in self.deciders.items():
            score = self.gate(name).score(self.weights(name))
            keep = self.gate(name).open(score)
            best = score.detach().topk(self._least(members)).indices
            forced = torch.zeros_like(keep).scatter(0, best, 1.0)
            if len(members) > 1:  # a choice that mixes needs no floor
                forced = forced * (keep.detach() <= 0).all()
            values |= self._split(members, keep + (forced * (1 - keep)).detach())
        return values

    def scores(self) -> dict[str, Tensor]:
        """Gate scores (c) per axis; a unit is open where its score is >= 0."""
        found: dict[str, Tensor] = {}
        for name, members in self.deciders.items():
            found |= self._split(members, self.gate(name).score(self.weights(name)).detach())
        return found

    def sizes(self) -> dict[str, Tensor]:
        """Open units per axis in the last forward pass; gradients reach the gates."""

        def counted(name: str, keep: Tensor) -> Tensor:
            return keep.abs().clamp(max=1) if self.axes[name].kind == "stripe" else keep  # a skeleton may exceed one

        return {name: counted(name, keep).sum() for name, keep in self._board.keep.items()}

    def arch(self) -> Arch:
        """The architecture that the gates have decided on."""
        kept: dict[str, Sequence[int]] = {}
        scores = self.scores()
        for name in self.space.alone:
            width = max(int((scores[name] >= 0).sum()), self.space.minimum[name])
            kept[name] = scores[name].topk(width).indices.tolist()
        return Arch(kept | {name: range(chosen) for name, chosen in self.space.chosen(scores).items()})

    def fixed(self, arch: Arch, *, mixed: bool = False) -> Fixed:
        """The model computing ``arch``, whatever the gates say: ``with gated.fixed(arch): ...``, or called on inputs.

        ``mixed``: what is kept counts as much as the gates say. Raises ArchError if the architecture does not fit.
        """
        arch.check(self.axes)
        return Fixed(self, arch, mixed=mixed)

    def opened(self, *, requires_grad: bool = False) -> Fixed:
        """The model with every unit open; ``requires_grad``: gradients reach its ``keep()``, from norms too."""
        return Fixed(self, Arch.dense(self.axes), requires_grad=requires_grad)

    @torch.no_grad()
    def fold(self) -> None:
        """Move what gates of stripes multiply onto weights into the weights, so that a gate is 1 or 0 from here on."""
        for name in (name for name, axis in self.space.free.items() if axis.kind == "stripe"):
            weight = self._striped(name)
            weight.copy_(self.gate(name).fold(weight))

    @torch.no_grad()
    def scale(self, name: str, factor: Tensor) -> None:
        """Multiply the weights that write each unit of an axis by its factor (c), in place."""
        for index, (tensor, dim, order) in enumerate(self.writers[name]):
            rows = tensor_of(self.backbone, tensor).movedim(dim, 0)
            place = slice(None) if order is None else self.get_buffer(_order(name, index))
            each = factor.repeat_interleave(len(rows[place]) // len(factor)).to(rows)
            rows[place] = rows[place] * each.reshape(-1, *[1] * (rows.ndim - 1))

    def plain(self) -> nn.Module:
        """A copy of the backbone without gates."""
        plain = plain_copy(self.backbone)
        close_up(plain)
        return plain

    def weights(self, name: str) -> list[Tensor]:
        """The weights that write an axis, one matrix (c n) per member, row u holding all that belongs to unit u.

        For a gate ``of_stripes``, what the gates of the stripes say.
        """
        if _key(name) in self.gates and self.gate(name).of_stripes:
            found = [self.gate(stripes).forward([]) for stripes in self._stripes(name)]
            return [keep.reshape(self.axes[name].size, -1) for keep in found]
        if name in self.axes and self.axes[name].kind == "stripe":
            return [rearrange(self._striped(name), "n c i j -> (n i j) c")]
        result = []
        for index, (tensor, dim, order) in enumerate(self.writers.get(name, ())):
            rows = tensor_of(self.backbone, tensor).movedim(dim, 0)
            rows = rows.reshape(len(rows), -1)
            size = self.space.axes[name].size
            ordered = rows if order is None else rows[self.get_buffer(_order(name, index))]
            result.append(ordered.reshape(size, -1))
        return result

    def _compute_live(self) -> None:
        """Choices compute only what the architecture keeps of them, while there is one."""
        closed = self.axes.closed(self._fixed[-1].arch) if self._fixed else []
        without = {branch.modules[0] for branch in closed}
        for path in self.axes.walk.captured.choices:
            choice = self.backbone.get_submodule(path)
            assert isinstance(choice, Choice)
            live = [name for name in choice.candidates if f"{path}.candidates.{name}" not in without]
            choice.live = live if live and self._fixed else None

    def _striped(self, name: str) -> Tensor:
        """The weight (n c i j) that an axis of stripes is about."""
        return tensor_of(self.backbone, f"{name.removesuffix('.stripes')}.weight")

    def _stripes(self, name: str) -> list[str]:
        """The stripe axes of the convolutions that write an axis; none, if anything else writes it."""
        written = self.writers.get(name, [])
        names = [f"{tensor.removesuffix('.weight')}.stripes" for tensor, _, _ in written]
        striped_alone = all(order is None for _, _, order in written) and all(each in self.space.free for each in names)
        return names if striped_alone else []

    def _least(self, members: tuple[str, ...]) -> int:
        """Units that always stay: one candidate of a choice, the least width of an axis."""
        return 1 if len(members) > 1 else self.space.minimum[members[0]]

    def _split(self, members: tuple[str, ...], values: Tensor) -> dict[str, Tensor]:
        """What a gate says (c), axis by axis."""
        sizes = [self.axes[member].size for member in members]
        return dict(zip(members, torch.split(values, sizes), strict=True))

    def gate(self, name: str) -> Gate:
        """The gate of an axis, or of a choice."""
        gate = self.gates[_key(name)]
        assert isinstance(gate, Gate)
        return gate

    def _touches(self, term: Term) -> bool:
        return any(self.axes.variables.get(var) in self.space.free for var in leaves(term))

    def _mask(self, term: Term, how: str, keep: dict[str, Tensor]) -> Tensor | None:
        """The mask of one site; None where a norm is open anyway, so that it computes bit for bit what it did."""
        mask = self.axes.mask(term, keep)
        moves = mask.requires_grad and (self.training or bool(self._fixed))
        needed = how == "mask" or moves or torch.compiler.is_compiling()
        return mask if needed or not bool((mask == 1).all()) else None


class Fixed:
    """A gated model while it computes one architecture. Blocks may be nested; the innermost counts."""

    def __init__(self, gated: GatedModel, arch: Arch, *, mixed: bool = False, requires_grad: bool = False) -> None:
        self.gated, self.arch, self.mixed, self.requires_grad = gated, arch, mixed, requires_grad
        self._keep: dict[str, Tensor] = {}

    def __enter__(self) -> GatedModel:
        self.gated._fixed.append(self)
        self.keep()  # now, and in no forward pass: torch.compile would compile the first one apart
        self.gated._compute_live()
        return self.gated

    def __exit__(self, *error: object) -> None:
        self.gated._fixed.pop()
        self.gated._compute_live()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output for these inputs."""
        with self:
            return self.gated(*args, **kwargs)

    def keep(self) -> dict[str, Tensor]:
        """Keep vector (c) of 0 and 1 per axis, where and as precise as the model is now."""
        like = next(self.gated.backbone.parameters())
        if not self._keep or next(iter(self._keep.values())).type() != like.type():
            free = self.gated.space.free.items()
            self._keep = {name: self.arch.keep(axis).to(like.device, like.dtype) for name, axis in free}
            if self.mixed:
                said = self.gated.gate_values()
                self._keep = {name: keep * said[name].detach() for name, keep in self._keep.items()}
            for keep in self._keep.values():
                keep.requires_grad_(self.requires_grad)
        return self._keep


def _order(name: str, index: int) -> str:
    """The buffer that holds which rows of a writer belong to which unit."""
    return f"order/{_key(name)}/{index}"


def _key(name: str) -> str:
    """Axis names hold dots, module names may not."""
    return name.replace(".", "/")
