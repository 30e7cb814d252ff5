"""Masks of all sites of a forward pass: one per term, however many sites read it, and none where nothing is closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas_prune.tracing import Axes
from nas_prune.tracing.terms import identity
from nas_prune.tracing.walk import Site


class Masks:
    """``masks(keep, moving)``: a mask (n) per site, or None for a site that may compute what it did without gates."""

    def __init__(self, axes: Axes, sites: Sequence[Site], *, always: bool) -> None:
        """``always``: sites are masked even where all is open, since what acts there is more than a product."""
        self.axes, self.sites, self.always = axes, sites, always
        self.terms = {identity(site.term): site.term for site in sites}
        self.term_of = [identity(site.term) for site in sites]

    def __call__(self, keep: Mapping[str, Tensor], *, moving: bool) -> list[Tensor | None]:
        """``keep``: values (c) per axis; ``moving``: whether gradients are to reach them from statistics, too."""
        masks = {key: self.axes.mask(term, keep) for key, term in self.terms.items()}
        idle = [self._idle(site, masks[key], moving) for site, key in zip(self.sites, self.term_of, strict=True)]
        asked = {key for key, may in zip(self.term_of, idle, strict=True) if may}
        opened = {key for key in asked if bool((masks[key] == 1).all())}
        return [None if may and key in opened else masks[key] for key, may in zip(self.term_of, idle, strict=True)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:  # facts about the graph: copies of a model share them
        return self

    def _idle(self, site: Site, mask: Tensor, moving: bool) -> bool:
        """Whether a site has nothing to do if its mask is open.

        A product with one changes nothing; to leave it out is worth a look at the mask where that waits for nobody.
        """
        if torch.compiler.is_compiling():
            return False
        if site.how == "mask":
            return mask.device.type == "cpu" and not mask.requires_grad and not self.always
        return not (mask.requires_grad and moving)
