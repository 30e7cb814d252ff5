"""Losses: what training descends beside penalties. One file per loss; the registry ``losses`` knows their names."""

from nas_prune.methods.losses.loss import Loss, Said, losses

__all__ = ["Loss", "Said", "losses"]
