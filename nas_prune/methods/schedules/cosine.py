"""Cosine: slowly at first and at last, as the keep ratio of ManiDP falls (CVPR 2021, arXiv 2103.05861, public code).

closed = (1 - cos(pi (t + 1) / E)) / 2
"""

from math import cos, pi

from nas_prune.methods.schedules.schedule import Phase, schedules


@schedules.register("cosine")
def cosine(epoch: float, epochs: int) -> Phase:
    """The phase after an epoch: what is closed may come back."""
    return Phase((1 - cos(pi * min(1.0, max(0.0, (epoch + 1) / epochs)))) / 2, 0.0)
