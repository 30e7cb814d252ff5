"""What convolutions and linear layers read: where a closed unit is missed, and where others can stand in for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.fx import Node

from nas_prune.base.errors import DataError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.graph.hooks import inputs_of
from nas_prune.tracing.terms import Cat, Term, leaves, resolve
from nas_prune.tracing.walk import Site

Look = Callable[[str, Site, Tensor], None]


def readers(gated: GatedModel) -> dict[str, Site]:
    """Path of each convolution and linear layer that reads an axis -> where it does; in the order in which they run."""
    captured, found = gated.axes.walk.captured, dict[str, Site]()
    for site in gated.axes.walk.sites:
        path = captured.owner(site.node)
        reads = isinstance(gated.backbone.get_submodule(path), nn.Conv2d | nn.Linear)
        if reads and site.how == "mask" and site.arg == 0:
            found[path] = site
    return found


@contextmanager
def looking(model: nn.Module, sites: Mapping[str, Site], look: Look) -> Iterator[None]:
    """In the block, ``look`` is called with what each reader reads, closed units included.

    It is inside of a forward pass, where calls are gated and counted: it may not compute a layer itself.
    """

    def before(path: str, given: tuple[Any, ...]) -> None:
        look(path, sites[path], given[0])

    with inputs_of({path: model.get_submodule(path) for path in sites}, before):
        yield


@dataclass(frozen=True)
class Reader:
    """A layer each of whose outputs is a sum over all entries (n) that it reads, by its weight (o n ...).

    ``term``: which units the entries belong to; ``norm``: path of the BatchNorm that alone reads its outputs, if any.
    """

    path: str
    site: Site
    term: Term
    norm: str | None

    @property
    def weight(self) -> str:
        """The name of its weight."""
        return f"{self.path}.weight"

    def outputs(self, model: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
        """What it would make of x with another weight (o n ...) and without a bias: (... o)."""
        module = copy.copy(model.get_submodule(self.path))  # without what is hooked on calls of it
        module._parameters = {**module._parameters, "weight": weight, "bias": None}  # type: ignore[dict-item]
        made: Tensor = module.forward(x)
        return made.movedim(1, -1) if isinstance(module, nn.Conv2d) else made

    def patches(self, model: nn.Module, x: Tensor) -> Tensor:
        """What each of its outputs sums over (p n k): positions of all images, entries, taps of the kernel."""
        module = model.get_submodule(self.path)
        if not isinstance(module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1], 1)
        kernel = module.weight.shape[2:]
        each_tap = torch.eye(kernel.numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *kernel)
        found = self.outputs(model, each_tap, x.reshape(-1, 1, *x.shape[-2:]))
        return rearrange(found, "(b n) h w k -> (b h w) n k", b=len(x))

    def entries(self, x: Tensor) -> Tensor:
        """All that it reads, as rows (p n) of all positions of all images."""
        return x.movedim(self.site.dim, -1).flatten(0, -2)


def mixing(gated: GatedModel) -> dict[str, Reader]:
    """The readers that sum over all that they read, by a weight that is a parameter, in the order in which they run."""
    walk, found = gated.axes.walk, dict[str, Reader]()
    for path, site in readers(gated).items():
        module, name = gated.backbone.get_submodule(path), f"{path}.weight"
        own = walk.tensor(site.node.args[1]) == name and "weight" in module._parameters
        if own and getattr(module, "groups", 1) == 1 and f"{path}.stripes" not in gated.space.free:
            found[path] = Reader(path, site, gated.axes.tensors[name][1], _norm(gated, site.node))
    return found


def _norm(gated: GatedModel, node: Node) -> str | None:
    """The BatchNorm that alone reads what a node says."""
    users = list(node.users)
    path = gated.axes.walk.captured.owner(users[0]) if len(users) == 1 else ""
    module = gated.backbone.get_submodule(path)
    normalizes = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    return path if normalizes and "batch_norm" in str(users[0].target) else None


@torch.no_grad()
def read(gated: GatedModel, arch: Arch, of: Collection[Reader], images: Tensor) -> dict[str, Tensor]:
    """What each reader reads in the network of an architecture, in eval mode; its closed units included."""
    found: dict[str, list[Tensor]] = {}

    def look(path: str, site: Site, x: Tensor) -> None:  # noqa: ARG001
        found.setdefault(path, []).append(x)

    with evaluating(gated), looking(gated.backbone, {each.path: each.site for each in of}, look):
        gated.fixed(arch)(images)
    return {path: torch.cat(each) for path, each in found.items()}


def first_images(batches: Batches, images: int, what: str) -> list[Tensor]:
    """The first images, batch by batch. Raises DataError where there are none."""
    found, left = list[Tensor](), images
    for x, _ in batches:
        found.append(x[:left])
        left -= len(found[-1])
        if not left:
            break
    if not found:
        raise DataError(f"{what} needs at least one batch of images; there was none")
    return found


def weight_of(gated: GatedModel, reader: Reader) -> Tensor:
    """The weight (o n ...) of a reader."""
    return tensor_of(gated.backbone, reader.weight).detach()


def axes_of(gated: GatedModel, term: Term) -> list[str]:
    """The free axes that a term speaks of."""
    names = dict.fromkeys(str(gated.axes.variables.get(var, "")) for var in leaves(term))
    return [name for name in names if name in gated.space.free]


def owners(gated: GatedModel, name: str, term: Term) -> Tensor:
    """For each entry (n) of a term, which unit of an axis it belongs to; -1 for one that belongs to none, or to two."""
    size, whole = gated.axes[name].size, resolve(term)
    for part in whole.parts if isinstance(whole, Cat) else (whole,):
        if [gated.axes.variables.get(var) for var in leaves(part)].count(name) > 1:
            return torch.full((whole.size,), -1)
    numbers = torch.arange(2, size + 2, dtype=torch.float64)  # what belongs to no unit counts as 1
    return gated.axes.mask(term, {name: numbers}).long() - 2


def best_of_units(gated: GatedModel, values: Mapping[str, Tensor], of: Mapping[str, Reader]) -> dict[str, Tensor]:
    """Per free axis that is read (c): the largest of all numbers that belong to each unit.

    ``values``: path of a reader -> a number, 0 or more, for each entry (n) that it reads.
    """
    found: dict[str, Tensor] = {}
    for path, value in values.items():
        for name in axes_of(gated, of[path].term):
            owner = owners(gated, name, of[path].term).to(value.device)
            own = found.setdefault(name, value.new_zeros(gated.axes[name].size))
            own.scatter_reduce_(0, owner[owner >= 0], value[owner >= 0], "amax")
    return found
