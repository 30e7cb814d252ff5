"""A backbone with gates: the same modules, parameters and state_dict keys, and one gate per free axis.

Gates act where an axis is read. So whatever lies between (bias, BatchNorm, activation), a closed unit contributes
exactly nothing, and the derived model computes exactly what the gated one computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from nas_prune.base.axis import Kind
from nas_prune.base.errors import SpaceError
from nas_prune.methods.fixed import Fixed
from nas_prune.methods.folding import fold_widths, hand_over
from nas_prune.methods.gates import Gate, gates
from nas_prune.methods.intercept import Board, intercept, plain_copy, release
from nas_prune.methods.looked_up import LookedUp
from nas_prune.methods.masks import Masks
from nas_prune.methods.writing import Act, along, writing
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.full_precision import full_precision
from nas_prune.tracing.graph.brought import tensor_of, unwrapped
from nas_prune.tracing.graph.multihead import close_up, open_up
from nas_prune.tracing.roles.outputs import output_sites
from nas_prune.tracing.roles.writers import striped, unit_rows, writers
from nas_prune.tracing.space import SearchSpace
from nas_prune.tracing.terms import Term, leaves


class GatedModel(nn.Module):
    """``model`` with a gate on every free axis of ``space``.

    ``gate``: a registered name or a Gate class; ``options``: the gate's keyword options; or both per kind of axis,
    ``kinds={"operation": ("softmax", {})}``; or the gates themselves, by axis. The candidates of a choice share one.
    ``settled``: sizes of axes that are not gated any more, by name, for those who ask for all sizes.
    The model is gated in place (hooks on its modules, which replace those of an earlier GatedModel); ``plain()`` gives
    a copy without gates.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace | Axes,
        gate: str | type[Gate] | Mapping[str, Gate] = "mask",
        *,
        options: Mapping[str, Any] | None = None,
        kinds: Mapping[Kind, tuple[str | type[Gate], Mapping[str, Any]]] | None = None,
        settled: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.settled = {name: torch.tensor(float(size)) for name, size in (settled or {}).items()}
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
            kind = self.axes[members[0]].kind
            given = gate[name] if isinstance(gate, Mapping) else (kinds or {}).get(kind, (gate, options or {}))
            self.gates[_key(name)] = given if isinstance(given, Gate) else self._made(name, members, *given)
        self._fixed: list[Fixed] = []
        self._folded = set[str]()
        self._board = Board()
        self._sites = [site for site in self.axes.walk.sites if self._touches(site.term)]
        self._acting = {member: self.gate(name) for name, members in self.deciders.items() for member in members}
        self._masks, self._outputs = Masks(self.axes, self._sites, self._acting), dict[str, Masks]()
        self._writing = [name for name, gate in self._acting.items() if gate.looks or gate.site == "write"]
        intercept(model, self.axes, self._sites, self._board, {name: self.writers[name] for name in self._writing})

    def _made(self, name: str, members: tuple[str, ...], gate: str | type[Gate], options: Mapping[str, Any]) -> Gate:
        """A gate for an axis, or for the candidates of a choice."""
        kind, made = self.axes[members[0]].kind, gates[gate] if isinstance(gate, str) else gate
        size, fan_in = sum(self.axes[member].size for member in members), [w.shape[1] for w in self.weights(name)]
        result = made.on(kind, size, fan_in, striped=bool(self._stripes(name)), **options)
        if result.looks:
            _, node, dim = next(writing(self.axes, {name: self.writers[name]}))
            result.face(node.all_input_nodes[0].meta["val"].shape[dim])
        return result

    @property
    def axes(self) -> Axes:
        """The axes, those outside the search space frozen."""
        return self.space.axes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward, gated. Raises SpaceError where another GatedModel has taken the backbone."""
        if self._board.released:
            raise SpaceError("another GatedModel was made of this backbone since; use that one, or gate a copy")
        if self._fixed:
            keep = self._fixed[-1].keep()
            self._board.open(keep, self._masks(keep, moving=True))
        else:
            keep = self._said()
            masks = self._masks.learning(self._at_work(keep), moving=self.training)
            acts = {name: Act(self.gate(name), partial(self.weights, name), keep, name) for name in self._writing}
            self._board.open(keep, masks, self._masks.mixes(keep), acts)
        try:
            return self.backbone(*args, **kwargs)
        finally:
            self._board.close()

    def seen(self, path: str, output: Tensor) -> Tensor:
        """What one who reads the ``output`` of a module sees of it after the last forward pass: gates act there."""
        if path not in self._outputs:
            sites = [site for site in output_sites(self.axes, path) if self._touches(site.term)]
            self._outputs[path] = Masks(self.axes, sites, self._acting)
        masks, keep = self._outputs[path], self._board.keep
        found = masks(keep, moving=True) if self._fixed else masks.learning(keep, moving=True)
        for site, mask in zip(masks.sites, found, strict=True):
            values = mask() if callable(mask) else mask
            output = output if values is None else output * along(values, output, site.dim)
        return output

    def _said(self) -> dict[str, Tensor]:
        """What the gates say, in full precision even where the backbone computes in less: half a unit is none."""
        with full_precision(next(self.backbone.parameters()).device):
            return self.gate_values()

    def _at_work(self, keep: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep values as the task sees them: numbers of stripes act on weights, and learn there from the task; a budget
        is charged for the filters that they make up, and its gradient reaches them, too.
        """
        striped = [name for name in keep if self._of_stripes(name)]
        return keep | {name: keep[name].detach() for name in striped} if striped else keep  # gates that look add to it

    def gate_values(self) -> dict[str, Tensor]:
        """What the gates say now: keep values (c) per axis, never less than the minimum width open."""
        values: dict[str, Tensor] = {}
        for name, members in self.deciders.items():
            score = self._score(name)
            keep = self.gate(name).open(score)
            keep = (keep > 0).to(keep.dtype) if name in self._folded else keep
            with torch.no_grad():
                best = score.topk(self._least(members)).indices
                missing = torch.zeros_like(keep).scatter_(0, best, 1 - keep[best])
                if len(members) > 1:  # a choice that mixes needs no floor
                    missing = missing * (keep <= 0).all()
            values |= self._split(members, keep + missing)
        return values

    def scores(self) -> dict[str, Tensor]:
        """Gate scores (c) per axis; a unit is open where its score is >= 0."""
        found: dict[str, Tensor] = {}
        for name, members in self.deciders.items():
            found |= self._split(members, self._score(name).detach())
        return found

    def _score(self, name: str) -> Tensor:
        """What the gate of an axis, or of a choice, thinks of its units (c)."""
        return self.gate(name).score(LookedUp(lambda: self.weights(name)))

    def sizes(self) -> dict[str, Tensor]:
        """Units per axis that a budget is charged for the last forward pass; gradients reach the gates."""
        keep, found = self._board.keep, dict[str, Tensor]()
        for name, members in self.deciders.items():
            whole = keep[name] if len(members) == 1 else torch.cat([keep[member] for member in members])
            charged = self.gate(name).charged(whole)
            each = self._split(members, charged if charged.ndim == 1 else charged.mean(0))
            found |= {member: units.sum() for member, units in each.items()}
        return self.settled | found

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
        """The model with every unit open, the candidates of a choice all at once, which add up; ``requires_grad``:
        gradients reach its ``keep()``, from norms too."""
        return Fixed(self, Arch.dense(self.axes), requires_grad=requires_grad)

    @torch.no_grad()
    def fold(self) -> None:
        """Move what gates multiply into the weights; a gate whose value is not 0 is 1 from here on.

        Of stripes onto the weight that they are of; of a width into the weights that read it, where nothing else does;
        of a gate that looks at images, what it hands over. What stands for a branch or a candidate stays as it is.
        """
        for name in (name for name, axis in self.space.free.items() if axis.kind == "stripe"):
            weight = tensor_of(self.backbone, striped(name))
            weight.copy_(self.gate(name).fold(weight))
        self._folded |= fold_widths(self)
        hand_over(self)

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

    def weights(self, name: str, keep: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The weights that write an axis, one matrix (c n) per member, row u holding all that belongs to unit u.

        ``keep``: values (c) of the other axes, with which what the weights read is multiplied. For a gate
        ``of_stripes``, what the gates of the stripes say.
        """
        if self._of_stripes(name):
            found = [self.gate(stripes).forward([]) for stripes in self._stripes(name)]
            return [keep.reshape(self.axes[name].size, -1) for keep in found]
        masks = keep if keep and not (name in self.axes and self.axes[name].kind == "stripe") else {}
        return [rows for _, rows in self.rows(name, lambda tensor, dim: self._reading(tensor, dim, masks))]

    def rows(self, name: str, of: Callable[[str, int], Tensor]) -> list[tuple[str, Tensor]]:
        """The name of each weight that writes an axis, and what ``of`` says in its place (of its name, and of the
        dimension that writes), as a matrix (c n): row u holds all that belongs to unit u."""
        if name in self.axes and self.axes[name].kind == "stripe":
            return [(striped(name), rearrange(of(striped(name), 0), "n c i j -> (n i j) c"))]
        found: list[tuple[str, Tensor]] = []
        units = self.axes[name].size if name in self.axes else 0
        for index, (tensor, dim, order) in enumerate(self.writers.get(name, ())):
            place = None if order is None else self.get_buffer(_order(name, index))
            found.append((tensor, unit_rows(of(tensor, dim), dim, place, units)))
        return found

    def _reading(self, name: str, written: int, keep: Mapping[str, Tensor]) -> Tensor:
        """A weight, in all dimensions but the one that it writes multiplied with what is kept of them."""
        tensor = tensor_of(self.backbone, name)
        for dim, term in enumerate(self.axes.tensors[name]) if keep else ():
            shape = [-1 if each == dim else 1 for each in range(tensor.ndim)]
            tensor = tensor if dim == written else tensor * self.axes.mask(term, keep).reshape(shape)
        return tensor

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
        if len(members) == 1:
            return {members[0]: values}
        sizes = [self.axes[member].size for member in members]
        return dict(zip(members, torch.split(values, sizes), strict=True))

    def gate(self, name: str) -> Gate:
        """The gate of an axis, or of a choice."""
        gate = self.gates[_key(name)]
        assert isinstance(gate, Gate)
        return gate

    def _of_stripes(self, name: str) -> bool:
        """Whether the gate of an axis only sums up what those of its stripes say."""
        return _key(name) in self.gates and self.gate(name).of_stripes

    def _touches(self, term: Term) -> bool:
        return any(self.axes.variables.get(var) in self.space.free for var in leaves(term))


def _order(name: str, index: int) -> str:
    """The buffer that holds which rows of a writer belong to which unit."""
    return f"order/{_key(name)}/{index}"


def _key(name: str) -> str:
    """Axis names hold dots, module names may not."""
    return name.replace(".", "/")
