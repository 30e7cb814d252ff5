"""Masks of all sites of a forward pass: one per term, however many sites read it, and none where nothing is closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas_prune.base.errors import SpaceError
from nas_prune.methods.gates import Gate
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import identity, leaves
from nas_prune.tracing.walk import Site

Mask = Tensor | None | Callable[[], Tensor]  # (n), or (b n) that is known when the gates have looked at the images
Mix = tuple[Callable[[Tensor, Tensor], Tensor], Tensor | Callable[[], Tensor]]  # what is done in place of a product


class Masks:
    """The masks of ``sites``; ``gates``: the gate of each axis."""

    def __init__(self, axes: Axes, sites: Sequence[Site], gates: Mapping[str, Gate]) -> None:
        self.axes, self.sites = axes, sites
        self.terms = {identity(site.term): site.term for site in sites}
        self.term_of = [identity(site.term) for site in sites]
        names = [[axes.variables.get(var, "") for var in leaves(site.term)] for site in sites]
        read = [{name: gates[name] for name in each if name in gates and gates[name].site == "read"} for each in names]
        looking = [any(gate.looks for gate in each.values()) for each in read]
        self.looking = [any(gate.looks and gate.multiplies for gate in each.values()) for each in read]
        self.mixing = [{name: gate for name, gate in each.items() if not gate.multiplies} for each in read]
        self.open = {name for name, gate in gates.items() if gate.site == "write" or not gate.multiplies}
        for site, looks, mixing in zip(sites, looking, self.mixing, strict=True):
            if site.how != "mask" and (looks or mixing):
                raise SpaceError(
                    f"{axes.walk.where(site.node)} looks at all units of an axis together, where a gate that does more "
                    "than multiply, or that looks at images, cannot act: freeze the axis, or choose another gate"
                )

    def __call__(self, keep: Mapping[str, Tensor], *, moving: bool) -> list[Mask]:
        """A mask per site, None for one that may compute what it did without gates.

        ``keep``: values (c) per axis; ``moving``: whether gradients are to reach them from statistics, too.
        """
        masks = {key: self.axes.mask(term, keep) for key, term in self.terms.items()}
        idle = [self._idle(site, masks[key], moving) for site, key in zip(self.sites, self.term_of, strict=True)]
        asked = {key for key, may in zip(self.term_of, idle, strict=True) if may}
        opened = {key for key in asked if bool((masks[key] == 1).all())}
        return [None if may and key in opened else masks[key] for key, may in zip(self.term_of, idle, strict=True)]

    def learning(self, keep: dict[str, Tensor], *, moving: bool) -> list[Mask]:
        """The masks of what gates multiply, each in its own way; those of gates that look are asked for at the site."""
        masks = self(keep | {name: torch.ones_like(keep[name]) for name in self.open}, moving=moving)
        acting = keep.keys() - self.open
        late = [partial(self._of_images, site, keep, acting) for site in self.sites] if any(self.looking) else masks
        return [then if looks else now for looks, now, then in zip(self.looking, masks, late, strict=True)]

    def mixes(self, keep: Mapping[str, Tensor]) -> list[list[Mix]]:
        """Per site, what acts there in place of a product; nothing, where every gate multiplies."""
        if not self.open:
            return []
        pairs = zip(self.sites, self.mixing, strict=True)
        one = {name: torch.ones_like(value) for name, value in keep.items()}

        def said(site: Site, name: str, gate: Gate) -> Tensor | Callable[[], Tensor]:
            late = partial(self._of_images, site, keep, {name})
            return late if gate.looks else self.axes.mask(site.term, one | {name: keep[name]})

        return [[(gate.mix, said(site, name, gate)) for name, gate in mixing.items()] for site, mixing in pairs]

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:  # facts about the graph: copies of a model share them
        return self

    def _of_images(self, site: Site, keep: Mapping[str, Tensor], acting: Set[str]) -> Tensor:
        """The mask (b n) of a site that gates of images act on, of the axes ``acting``, the others being open."""
        images = max(len(value) for value in keep.values() if value.ndim == 2)
        shown = {name: value if name in acting else torch.ones_like(value) for name, value in keep.items()}
        found = {name: value if value.ndim == 2 else value.expand(images, -1) for name, value in shown.items()}
        mask: Tensor = torch.vmap(lambda each: self.axes.mask(site.term, each))(found)
        return mask

    def _idle(self, site: Site, mask: Tensor, moving: bool) -> bool:
        """Whether a site has nothing to do if its mask is open.

        A product with one changes nothing; to leave it out is worth a look at the mask where that waits for nobody.
        """
        if torch.compiler.is_compiling():
            return False
        if site.how == "mask":
            return mask.device.type == "cpu" and not mask.requires_grad
        return not (mask.requires_grad and moving)
