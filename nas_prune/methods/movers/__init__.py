"""Movers: what moves gates or weights between steps and epochs. The registry ``movers`` knows their names."""

from nas_prune.methods.movers.mover import Aim, Mover, movers

__all__ = ["Aim", "Mover", "movers"]
