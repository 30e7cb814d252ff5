"""An architecture: which units of each axis are kept. Plain data, and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nas_prune.axes import Axis
from nas_prune.errors import ArchError
from nas_prune.files import read_json, write_json
from nas_prune.registry import hint


@dataclass(frozen=True)
class Arch:
    """``{axis name: kept unit indices}``. An axis that is left out is dense.

    Indices are kept sorted and unique, so two architectures that keep the same units are equal.
    """

    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tidy = {name: tuple(sorted({int(unit) for unit in units})) for name, units in self.kept.items()}
        object.__setattr__(self, "kept", tidy)

    @staticmethod
    def dense(axes: Mapping[str, Axis]) -> Arch:
        """Everything kept, every free axis spelled out."""
        return Arch({name: range(axis.size) for name, axis in axes.items() if axis.frozen is None})

    @staticmethod
    def random(axes: Mapping[str, Axis], keep: float = 0.5, *, generator: torch.Generator | None = None) -> Arch:
        """A random ``keep`` share of every free axis: at least one unit, and a multiple of its divisor."""
        kept = {}
        for name, axis in axes.items():
            if axis.frozen is None:
                width = allowed_width(axis, keep * axis.size)
                kept[name] = torch.randperm(axis.size, generator=generator)[:width].tolist()
        return Arch(kept)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Arch:
        """Read the JSON that ``write`` wrote."""
        content = read_json(path, ArchError)
        kept = content.get("kept") if isinstance(content, dict) else None
        if not isinstance(kept, dict) or not all(isinstance(units, list) for units in kept.values()):
            raise ArchError(f"{path} is not an architecture file; expected {{'kept': {{axis: [units]}}}}")
        if any(type(unit) is not int for units in kept.values() for unit in units):
            raise ArchError(f"{path} is not an architecture file: a unit is a whole number")
        return Arch(kept)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file, whole or not at all."""
        write_json(path, {"kept": {name: list(units) for name, units in self.kept.items()}})

    def sizes(self, axes: Mapping[str, Axis]) -> dict[str, int]:
        """Width of every axis, the dense ones included."""
        return {name: len(self.kept[name]) if name in self.kept else axis.size for name, axis in axes.items()}

    def check(self, axes: Mapping[str, Axis]) -> None:
        """Raise ArchError where this architecture does not fit the axes."""
        for name, units in self.kept.items():
            if name not in axes:
                raise ArchError(
                    f"the architecture names axis {name!r}, which the model does not have{hint(name, list(axes))}"
                )
            axis = axes[name]
            if not units:
                raise ArchError(f"axis {name!r} would lose its last unit; keep at least one of {axis.size}")
            if units[0] < 0 or units[-1] >= axis.size:
                raise ArchError(
                    f"axis {name!r} has units 0 to {axis.size - 1}, the architecture keeps {units[0]} to {units[-1]}"
                )
            if axis.frozen is not None and len(units) < axis.size:
                raise ArchError(
                    f"axis {name!r} is frozen ({axis.frozen}); the architecture keeps {len(units)} of {axis.size} units"
                )


def allowed_width(axis: Axis, wanted: float) -> int:
    """The allowed width nearest to ``wanted``: a multiple of the divisor, at least one step, at most the size."""
    step = min(axis.divisor, axis.size)
    return min(axis.size, max(step, step * round(wanted / step)))
