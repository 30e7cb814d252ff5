"""From solved terms to named axes: every free variable in a parameter's dimension is one.

``Axes`` is what the rest of the package works with: an ordered mapping name -> Axis, with the record of the walk
behind it, from which masks, kept indices and derived sizes are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod as product

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from nas_prune.base.axis import Axis, Kind, Member
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.branches import Branch, branches, close
from nas_prune.tracing.stripes import ConvolutionStripes, enter, stripes
from nas_prune.tracing.terms import Cat, Prod, Striped, Term, Var, frozen_leaves, leaves, resolve
from nas_prune.tracing.walk import Walk


@dataclass(frozen=True)
class Scale:
    """A number of the model that a smaller one computes otherwise, and that rows of queries can make up for.

    ``index``: which call of arithmetic it is; ``node``: the same in the graph; ``dense``: the number; ``over``: whether
    it divides.
    """

    index: int
    node: Node
    dense: float
    over: bool

    def __deepcopy__(self, memo: dict[int, object]) -> Scale:  # a fact about the graph: copies of a model share it
        return self


@dataclass(frozen=True)
class Axes(Mapping[str, Axis]):
    """The axes of one model, in the order in which its parameters are written."""

    named: Mapping[str, Axis]
    walk: Walk = field(repr=False)
    variables: Mapping[Var, str] = field(repr=False)
    tensors: Mapping[str, tuple[Term, ...]] = field(repr=False)
    branches: tuple[Branch, ...] = field(default=(), repr=False)
    stripes: tuple[ConvolutionStripes, ...] = field(default=(), repr=False)
    striped: Mapping[str, Striped] = field(default_factory=dict, repr=False)
    scales: tuple[Scale, ...] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Axis:
        return self.named[name]

    def __deepcopy__(self, memo: dict[int, object]) -> Axes:  # facts: copies of a model share them
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Name under which a choice is decided -> the axes of its candidates, in the order of the sum."""
        found: dict[str, dict[str, None]] = {}
        for branch in self.branches:
            if branch.kind == "operation":
                found.setdefault(branch.name.rpartition(".")[0], {})[branch.name] = None
        return {choice: tuple(names) for choice, names in found.items()}

    def closed(self, arch: Arch) -> list[Branch]:
        """The branches that an architecture leaves out."""
        return [each for each in self.branches if not arch.kept.get(each.name, range(self.named[each.name].dense))]

    @property
    def presence(self) -> dict[str, tuple[Var, ...]]:
        """Parameter or buffer -> the bits of the branches that it is taken out with."""
        known = self.walk.captured.tensors
        return {known[node.name]: tuple(bits) for node, bits in self.walk.presence.items() if node.name in known}

    @property
    def free(self) -> dict[str, Axis]:
        """The axes that may change."""
        return {name: axis for name, axis in self.named.items() if axis.frozen is None}

    def renamed(self, names: Mapping[str, str]) -> Axes:
        """The same axes by these names; one that is left out keeps its own."""
        called = {name: names.get(name, name) for name in self.named}
        named = {called[name]: replace(axis, name=called[name]) for name, axis in self.named.items()}
        variables = {var: called[name] for var, name in self.variables.items()}
        branches = tuple(replace(each, name=called[each.name]) for each in self.branches)
        return replace(self, named=named, variables=variables, branches=branches)

    def mask(self, term: Term, keep: Mapping[str, Tensor]) -> Tensor:
        """Keep vector (n) of a term: concatenation of its parts', outer product of its factors'; 1 where fixed."""
        term = resolve(term)
        if isinstance(term, Cat):
            return torch.cat([self.mask(part, keep) for part in term.parts])
        if isinstance(term, Prod):
            result = self.mask(term.parts[0], keep)
            for factor in term.parts[1:]:
                result = torch.outer(result, self.mask(factor, keep)).reshape(-1)
            return result
        if isinstance(term, Var) and self.variables.get(term) in keep:
            return keep[self.variables[term]]
        like = next(iter(keep.values()), torch.ones(()))
        return torch.ones(term.size, dtype=like.dtype, device=like.device)

    def indices(self, term: Term, arch: Arch) -> Tensor | None:
        """Kept indices (m) of a term, or None where all of it stays."""
        named = {str(self.variables[var]) for var in leaves(term) if var in self.variables}
        touched = {name for name in named if name in arch.kept or self.named[name].dense < self.named[name].size}
        if not touched:
            return None
        keep = {name: arch.keep(self.named[name]) for name in touched}
        return self.mask(term, keep).nonzero().flatten()

    def width(self, term: Term, sizes: Mapping[str, Tensor | float]) -> Tensor | float:
        """How many units of a term are left when the axes have these sizes (real numbers allowed, gradients pass)."""
        term = resolve(term)
        if isinstance(term, Cat):
            return sum(self.width(part, sizes) for part in term.parts)
        if isinstance(term, Prod):
            return product(self.width(part, sizes) for part in term.parts)
        if isinstance(term, Striped):
            whole, live = self.width(term.filters, sizes) * term.positions, self.width(term.stripes, sizes)
            return torch.minimum(torch.as_tensor(whole), torch.as_tensor(live))
        name = self.variables.get(term) if isinstance(term, Var) else None
        if name is None:
            return float(term.size)
        return sizes[name] if name in sizes else float(self.named[name].dense)

    def size_of(self, term: Term, arch: Arch) -> int:
        """How many units of a term an architecture leaves."""
        return round(float(self.width(term, {name: float(len(units)) for name, units in arch.kept.items()})))

    def take(self, tensor: Tensor, dims: tuple[Term, ...], arch: Arch) -> Tensor:
        """What an architecture leaves of a tensor whose dimensions mean ``dims``."""
        if isinstance(tensor, FakeTensor):  # it has no numbers to choose from
            sizes = [self.size_of(term, arch) for term in dims]
            return tensor if sizes == [*tensor.shape] else tensor.new_empty(sizes)
        for dim, term in enumerate(dims):
            kept = self.indices(term, arch)
            if kept is not None:
                tensor = tensor.index_select(dim, kept.to(tensor.device))
        return tensor


def find(walk: Walk, *, striped: bool = False) -> Axes:
    """Name the free and the frozen variables that occur in parameters and buffers, the bits of branches, and stripes.

    Bits and stripes are entered into the record of the walk.
    """
    tensors = {
        walk.captured.tensors[node.name]: walk.terms[node] for node in walk.terms if node.name in walk.captured.tensors
    }
    named, variables = _widths(walk, tensors)
    found, shaped = branches(walk), stripes(walk) if striped else []
    close(walk, found)
    weights = enter(walk, shaped)
    for branch in found:
        named[branch.name] = Axis(branch.name, branch.kind, 1, (), branch.why, given=0 if branch.optional else None)
        variables[branch.bit] = branch.name
    for each in shaped:
        named[each.name] = Axis(each.name, "stripe", each.var.size, ())
        variables[each.var] = each.name
    free = {var: name for var, name in variables.items() if named[name].frozen is None}
    return Axes(named, walk, free, tensors, tuple(found), tuple(shaped), weights)


def _widths(walk: Walk, tensors: Mapping[str, tuple[Term, ...]]) -> tuple[dict[str, Axis], dict[Var, str]]:
    """The variables in dimensions of parameters and buffers, as axes by name, and the name of each."""
    members: dict[Var, list[Member]] = {}
    for tensor, dims in tensors.items():
        for dim, term in enumerate(dims):
            for var in dict.fromkeys([*leaves(term), *frozen_leaves(term)]):
                if var.size > 1:
                    members.setdefault(var, []).append(Member(tensor, dim, walk.roles.get((tensor, dim), "follow")))
    kinds = _kinds(walk)
    named: dict[str, Axis] = {}
    variables: dict[Var, str] = {}
    for var, belonging in members.items():
        if var.why is not None and not any(member.role == "write" or _vector(tensors, member) for member in belonging):
            continue
        kind = kinds.get(var) or _kind(belonging)
        name = _unused(_name(belonging, kind), named)
        named[name] = Axis(name, kind, var.size, tuple(belonging), var.why)
        variables[var] = name
    return named, variables


def _vector(tensors: Mapping[str, tuple[Term, ...]], member: Member) -> bool:
    """Whether a member is more than a kernel tap or an input channel of a convolution."""
    return len(tensors[member.tensor]) < 4


def _kinds(walk: Walk) -> dict[Var, Kind]:
    found: dict[Var, Kind] = {}
    for term, kind in walk.kinds:
        for var in leaves(term):
            found.setdefault(var, kind)
    return found


def _kind(members: list[Member]) -> Kind:
    """``hidden``: written and read by weights of one module only (the inside of an MLP); otherwise ``channel``."""
    weights = [member.tensor for member in members if member.role != "follow"]
    parents = {tensor.rsplit(".", 2)[0] if tensor.count(".") > 1 else "" for tensor in weights}
    roles = {member.role for member in members}
    inside_mlp = len(parents) == 1 and "mlp" in next(iter(parents)).rsplit(".", 1)[-1]
    return "hidden" if inside_mlp and roles >= {"write", "read"} else "channel"


def _name(members: list[Member], kind: Kind) -> str:
    """The module that writes the axis first; heads and head_dim say which of the two they are."""
    first = next((member for member in members if member.role == "write"), members[0])
    module = first.tensor.removesuffix(".weight").removesuffix(".bias").removesuffix(".weight_ih_l0")
    return f"{module}.{kind}" if kind in ("head", "head_dim") else module


def _unused(name: str, named: Mapping[str, Axis]) -> str:
    candidate, count = name, 1
    while candidate in named:
        count += 1
        candidate = f"{name}:{count}"
    return candidate
