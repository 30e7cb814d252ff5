"""Widen axes of a model before it is searched: more units than it was given, and the very function that it computed.

A new unit is a copy of an old one that nothing reads yet: the columns that read it are zero, as in the function
preserving transformations of Net2Net (arXiv 1511.05641), which share columns out instead. What reads them learns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas_prune.base.axis import BITS
from nas_prune.base.errors import SpaceError
from nas_prune.base.wider import mark
from nas_prune.derivation.derive import replaced, run_once
from nas_prune.derivation.integers import repair
from nas_prune.derivation.source.edits import edits_of, rewrite
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.terms import Cat, Prod, Term, Var, leaves, resolve


def widen(model: nn.Module, axes: Axes, sizes: Mapping[str, int]) -> None:
    """Give axes of a traced model these sizes, in place; its outputs stay what they are.

    Raises SpaceError for an axis whose units something looks at together (a norm over them, attention scores), and for
    a size below what the axis has.
    """
    for name, size in sizes.items():
        why = unwidenable(axes, name, size)
        if why is not None:
            raise SpaceError(f"axis {name} cannot be widened to {size} units: {why}; leave it out")
    rewrite(model, edits_of(model, axes))
    replaced(model, axes, lambda name, tensor: _wider(axes, sizes, name, tensor))
    repair(model, axes, Arch({name: range(size) for name, size in sizes.items()}))
    run_once(model, axes.walk.captured)
    mark(model)


def unwidenable(axes: Axes, name: str, size: int) -> str | None:
    """Why an axis cannot have so many units; None where it can."""
    axis = axes[name]
    if axis.frozen is not None or axis.kind in (*BITS, "stripe"):
        return axis.frozen or f"a {axis.kind} is no width"
    if size < axis.size:
        return f"it has {axis.size}"
    sites = [site for site in axes.walk.sites if any(axes.variables.get(var) == name for var in leaves(site.term))]
    together = next((site for site in sites if site.weight is None), None)
    return None if together is None else f"{axes.walk.where(together.node)} looks at its units together"


def _wider(axes: Axes, sizes: Mapping[str, int], name: str, tensor: Tensor) -> Tensor:
    """A tensor for the new sizes: of new units copies of old ones, and zero where they are read."""
    for dim, term in enumerate(axes.tensors[name]):
        source, new = _sources(axes, term, sizes)
        tensor = tensor.index_select(dim, source.to(tensor.device))
        if axes.walk.roles.get((name, dim)) == "read":
            tensor = tensor.index_fill(dim, new.nonzero().flatten().to(tensor.device), 0)
    return tensor


def _sources(axes: Axes, term: Term, sizes: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """For each index of a widened term, the old one that it copies (m), and whether it is new (m)."""
    term = resolve(term)
    if isinstance(term, Cat):
        parts = [_sources(axes, part, sizes) for part in term.parts]
        first = torch.tensor([0, *(part.size for part in term.parts[:-1])]).cumsum(0)
        sources = [source + start for (source, _), start in zip(parts, first, strict=True)]
        return torch.cat(sources), torch.cat([new for _, new in parts])
    if isinstance(term, Prod):
        source, new = _sources(axes, term.parts[0], sizes)
        for part in term.parts[1:]:
            inner, fresh = _sources(axes, part, sizes)
            source, new = (source[:, None] * part.size + inner).flatten(), (new[:, None] | fresh).flatten()
        return source, new
    size = sizes.get(axes.variables.get(term, ""), term.size) if isinstance(term, Var) else term.size
    return torch.arange(size) % term.size, torch.arange(size) >= term.size
