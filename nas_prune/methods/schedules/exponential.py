"""Exponential: what a network may cost falls by the same factor from step to step, so that early cuts are the largest.

HALP (Shen et al., arXiv 2110.10811) prunes in many steps, the limit after a share t of them being C_t = L0^(1-t) C^t:
L0 is the cost of the dense network, C the budget. With ``ratio`` r = C / L0 that is, of all that has to go,

    closed = (L0 - C_t) / (L0 - C) = (1 - r^t) / (1 - r)

and, where r is one, t.
"""

from math import expm1, log
from typing import Annotated

from pydantic import Field

from nas_prune.methods.schedules.schedule import Phase, schedules

Ratio = Annotated[float, Field(gt=0, le=1)]


@schedules.register("exponential")
def exponential(epoch: float, epochs: int, *, ratio: Ratio = 0.5) -> Phase:
    """The phase after an epoch: what is closed, is closed for good. ``ratio``: the budget's share of the dense cost."""
    passed = min(1.0, max(0.0, (epoch + 1) / epochs))
    return Phase(passed if 1 in (passed, ratio) else expm1(passed * log(ratio)) / (ratio - 1), 1.0)
