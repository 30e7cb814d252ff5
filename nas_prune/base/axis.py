"""An axis: one width of the network, with every tensor dimension that it runs through.

Closing unit 7 of an axis closes it in all members at once; that is why members exist. Axes are found by
``nas_prune.tracing`` and are plain facts: they hold no tensor.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["channel", "head", "head_dim", "hidden", "stripe", "depth", "operation"]
Role = Literal["write", "read", "follow"]
BITS: tuple[Kind, ...] = ("depth", "operation")  # axes of one unit, which may be closed


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that an axis runs through.

    ``write``: the rows of a weight that produce the axis; ``read``: the columns of a weight that contract it;
    ``follow``: per-unit entries in between (bias, normalisation, layer scale, position embedding).
    """

    tensor: str
    dim: int
    role: Role


@dataclass(frozen=True)
class Axis:
    """One width: ``size`` units, the members it runs through, and why it may not change (``frozen``), if so.

    A width can only take multiples of ``divisor`` (the full ``size`` is always allowed). ``given``: the units that the
    dense network has, where an axis was widened, or is a candidate that the dense network lacks.

    >>> axes["conv1.0"].kind, axes["conv1.0"].size, axes["fc"].frozen
    ('channel', 16, 'model output')
    >>> [member.tensor for member in axes["conv1.0"].members if member.role != "follow"]
    ['conv1.0.weight', 'conv1.3.weight']
    """

    name: str
    kind: Kind
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None
    divisor: int = 1
    given: int | None = None

    @property
    def dense(self) -> int:
        """Units in the dense network; what an axis has that an architecture does not name."""
        return self.size if self.given is None else self.given
