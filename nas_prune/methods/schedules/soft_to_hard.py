"""From soft to hard: pruned filters that may come back, ever more of them, ever fewer of which may.

Formulas and constants as in the public code of SFP and of the first author of GHFP; of GHFP's own text only the
abstract was at hand. Each schedule names its paper.

    closed (rising)   1 - (1 - (t + 1) / E)^3, or 1 - exp(-t ln 4 / (D E)) with D = 1/8, or 1; 1 from 0.95 E on
    hard (GHFP)       1 - (1 - (t + 1) / E)^3
    soft (SRFP)       a exp(-k t), k = -ln(s / (a + 0.01 s)) / E, s = 1e-5; 0 from 0.9 E on

Epoch -1 is what is closed before the first one: the cubic's nothing, and of the others what they say of t = 0.
"""

from math import exp, log
from typing import Literal

from nas_prune.methods.schedules.schedule import Phase, schedules

Rise = Literal["cubic", "exponential", "at_once"]
LAST, ZEROED, SIGMA, KNEE = 0.95, 0.9, 1e-5, 1 / 8  # shares of the epochs; where 3/4 of the exponential rise is done


@schedules.register("sfp")
def sfp(epoch: float, epochs: int) -> Phase:  # noqa: ARG001
    """SFP (He et al., IJCAI 2018, arXiv 1808.06866): all is closed from the start, and all of it may come back."""
    return Phase(1.0, 0.0)


@schedules.register("hfp")
def hfp(epoch: float, epochs: int) -> Phase:  # noqa: ARG001
    """HFP (Cai et al., arXiv 2011.03170): all is closed from the start, for good."""
    return Phase(1.0, 1.0)


@schedules.register("asfp")
def asfp(epoch: float, epochs: int, *, rise: Rise = "exponential") -> Phase:
    """ASFP (He et al., arXiv 1808.07471): more and more is closed, and all of it may come back."""
    return Phase(risen(epoch, epochs, rise), 0.0)


@schedules.register("srfp")
def srfp(epoch: float, epochs: int, *, start: float = 0.5) -> Phase:
    """SRFP (Cai et al., arXiv 2010.09498): all is closed, at first shrunk to ``start``, at last zeroed."""
    return Phase(1.0, 0.0, softness(epoch, epochs, start))


@schedules.register("asrfp")
def asrfp(epoch: float, epochs: int, *, rise: Rise = "exponential", start: float = 0.5) -> Phase:
    """ASRFP (Cai et al., arXiv 2010.09498): more and more is closed, at first shrunk to ``start``, at last zeroed."""
    return Phase(risen(epoch, epochs, rise), 0.0, softness(epoch, epochs, start))


@schedules.register("ghfp")
def ghfp(epoch: float, epochs: int, *, rise: Rise = "cubic", start: float = 0.0) -> Phase:
    """GHFP (Cai et al., arXiv 2011.03170): more and more is closed, or all ``at_once``, ever more of that for good."""
    return Phase(risen(epoch, epochs, rise), risen(epoch, epochs, "cubic", last=1.0), softness(epoch, epochs, start))


def risen(epoch: float, epochs: int, rise: Rise, last: float = LAST) -> float:
    """The share in [0, 1] of what will be closed that is closed after an epoch; all from the share ``last`` on."""
    if rise == "at_once" or epoch >= last * epochs or epoch + 1 >= epochs:
        return 1.0
    if rise == "cubic":
        return 1 - (1 - (epoch + 1) / epochs) ** 3
    return 1 - exp(-max(0, epoch) * log(4) / (KNEE * epochs))


def softness(epoch: float, epochs: int, start: float) -> float:
    """What the weights of closed units are multiplied by after an epoch, in [0, ``start``]."""
    if not start or epoch >= ZEROED * epochs or epoch + 1 >= epochs:
        return 0.0
    return start * exp(max(0, epoch) * log(SIGMA / (start + 0.01 * SIGMA)) / epochs)
