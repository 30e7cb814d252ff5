"""An architecture: which units of each axis are kept. Plain data, and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from nas_prune.base.axis import BITS, Axis
from nas_prune.base.errors import ArchError, shown
from nas_prune.base.files.documents import Document, read_document
from nas_prune.base.files.whole import write_json
from nas_prune.base.registry import hint

Units = Annotated[list[Annotated[int, Field(ge=0, lt=10**7)]], Field(max_length=10**7)]
ADVICE = "an architecture file is {'kept': {axis: [units]}}"


class ArchFile(Document):
    """What the file of an architecture holds: whole numbers per axis, none of them twice."""

    kept: dict[str, Units]

    @field_validator("kept")
    @classmethod
    def _once(cls, kept: dict[str, list[int]]) -> dict[str, list[int]]:
        if any(len(set(units)) < len(units) for units in kept.values()):
            raise ValueError("a unit is named twice")
        return kept


@dataclass(frozen=True)
class Arch:
    """``{axis name: kept unit indices}``. An axis that is left out is dense; of a choice, the first candidate is.

    Indices are kept sorted and unique, so two architectures that keep the same units are equal.
    """

    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tidy = {name: tuple(sorted({int(unit) for unit in units})) for name, units in self.kept.items()}
        object.__setattr__(self, "kept", tidy)

    @staticmethod
    def dense(axes: Mapping[str, Axis]) -> Arch:
        """Everything kept, all candidates too, every free axis spelled out."""
        return Arch({name: range(axis.size) for name, axis in axes.items() if axis.frozen is None})

    @staticmethod
    def random(
        axes: Mapping[str, Axis],
        keep: float = 0.5,
        *,
        bits: float = 1.0,
        stripes: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Arch:
        """A random ``keep`` share of every free width: the nearest width that is allowed.

        ``bits``: the share of branches and candidates that stay; ``stripes``: of stripes.
        """
        kept: dict[str, Sequence[int]] = {}
        for name, axis in axes.items():
            if axis.frozen is None and axis.kind in BITS:
                kept[name] = range(int(float(torch.rand((), generator=generator)) < bits))
            elif axis.frozen is None:
                width = allowed_width(axis, (stripes if axis.kind == "stripe" else keep) * axis.size)
                kept[name] = torch.randperm(axis.size, generator=generator)[:width].tolist()
        return Arch(kept)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Arch:
        """Read the JSON that ``write`` wrote."""
        return Arch(read_document(path, ArchFile, ArchError, advice=ADVICE)["kept"])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file, whole or not at all."""
        write_json(path, {"kept": {name: list(units) for name, units in self.kept.items()}})

    def sizes(self, axes: Mapping[str, Axis]) -> dict[str, int]:
        """Width of every axis, the dense ones included."""
        return {name: len(self.kept[name]) if name in self.kept else axis.dense for name, axis in axes.items()}

    def within(self, kept: Arch) -> Arch:
        """This architecture of what ``kept`` left of a network, in the units of that network."""
        known = {
            name: [kept.kept[name][unit] for unit in units] for name, units in self.kept.items() if name in kept.kept
        }
        return Arch({**kept.kept, **self.kept, **known})

    def keep(self, axis: Axis) -> Tensor:
        """Keep vector (c) of an axis, 0 and 1 in float64."""
        units = torch.tensor(self.kept.get(axis.name, range(axis.dense)), dtype=torch.long)
        return torch.zeros(axis.size, dtype=torch.float64).index_fill(0, units, 1.0)

    def check(self, axes: Mapping[str, Axis]) -> None:
        """Raise ArchError where this architecture does not fit the axes."""
        for name, units in self.kept.items():
            if name not in axes:
                raise ArchError(
                    f"the architecture names axis {shown(name)}, which the model does not have{hint(name, list(axes))}"
                )
            axis = axes[name]
            if not units and axis.kind not in (*BITS, "stripe"):
                raise ArchError(f"axis {name!r} would lose its last unit; keep at least one of {axis.size}")
            if units and (units[0] < 0 or units[-1] >= axis.size):
                raise ArchError(
                    f"axis {name!r} has units 0 to {axis.size - 1}, the architecture keeps {units[0]} to {units[-1]}"
                )
            if axis.frozen is not None and len(units) < axis.size:
                raise ArchError(
                    f"axis {name!r} is frozen ({axis.frozen}); the architecture keeps {len(units)} of {axis.size} units"
                )


def allowed_width(axis: Axis, wanted: float) -> int:
    """The allowed width nearest to ``wanted``: a multiple of the divisor, at least one step, or the whole axis; a bit
    may be 0."""
    if axis.kind in BITS:
        return round(min(1.0, max(0.0, wanted)))
    step = min(axis.divisor, axis.size)
    width = min(axis.size, max(step, step * round(wanted / step)))
    return axis.size if abs(axis.size - wanted) < abs(width - wanted) else width
