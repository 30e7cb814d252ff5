"""Gradual pruning: nothing at first, then ever more, fastest where there is most to take (Zhu and Gupta, 2017).

"To prune, or not to prune" (arXiv 1710.01878), section 3, with a final share of one:

    closed = 1 - (1 - (t - t0) / (E - t0))^p,  nothing before t0,  p = 3

``begin`` is t0 as a share of the epochs E; another power is ours.
"""

from nas_prune.methods.schedules.schedule import Phase, schedules


@schedules.register("gradual")
def gradual(epoch: float, epochs: int, *, begin: float = 1 / 3, power: float = 3.0) -> Phase:
    """The phase after an epoch: what is closed, is closed for good."""
    passed = (epoch + 1) / epochs
    done = min(1.0, max(0.0, (passed - begin) / (1 - begin))) if begin < 1 else float(passed >= 1)
    return Phase(1 - (1 - done) ** power, 1.0)
