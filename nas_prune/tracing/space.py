"""A search space: which axes may change, and which sizes each may take. A YAML file in ``search_spaces/``.

    description: what may change, in one line
    rules:                       # the last rule that matches an axis decides
      - match: "*"               # a pattern over axis names (or a list of them)
        kinds: [channel, hidden] # only axes of these kinds
        divisor: 8               # widths are multiples of this ...
        widths: 8                # ... or of less, so that an axis has at least this many widths
        minimum: 0.1             # share of the units that always stay
        widen: 1.25              # optional: more units before the search, a multiple of what the model has
      - match: "conv1*"
        freeze: the stem sees the image
    replace:                     # optional: modules that become a choice of candidate operations
      - match: "layer*.conv?"
        type: Conv2d
        candidates: {conv_3x3: {operation: convolution}, conv_1x1: {operation: convolution, kernel: 1}}

An axis that no rule matches is frozen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import ceil
from os.path import isfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from nas_prune.base.axis import BITS, Axis, Kind
from nas_prune.base.errors import SpaceError, shown
from nas_prune.base.files.mistakes import explained
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.base.registry import hint
from nas_prune.base.wider import WIDEST
from nas_prune.tracing import Axes


class SpaceRule(BaseModel):
    """One rule: which axes it is about, and what they may do."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    match: str | list[str] = Field("*", description="pattern over axis names, * and ? allowed")
    kinds: list[Kind] | Literal["all"] = Field("all", description="axis kinds that the rule is about")
    divisor: PositiveInt = Field(8, description="widths are multiples of this")
    widths: PositiveInt = Field(
        8, description="an axis has at least this many widths, if need be with a smaller divisor"
    )
    minimum: float = Field(0.1, ge=0.0, le=1.0, description="share of the units that always stay")
    freeze: str | None = Field(None, description="why these axes may not change")
    widen: float = Field(1.0, ge=1.0, le=WIDEST, description="units before the search, times those of the model")

    def about(self, axis: Axis) -> bool:
        """Whether the rule is about this axis."""
        patterns = [self.match] if isinstance(self.match, str) else self.match
        return (self.kinds == "all" or axis.kind in self.kinds) and any(fnmatchcase(axis.name, p) for p in patterns)


class Replacement(BaseModel):
    """Which modules become a choice of candidate operations, and which candidates."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    match: str | list[str] = Field("*", description="pattern over paths of modules, * and ? allowed")
    type: str = Field("Conv2d", description="class of the modules, by its name")
    only: dict[str, Any] = Field({}, description="attributes that they must have, e.g. {kernel_size: [3, 3]}")
    candidates: dict[str, dict[str, Any]] = Field(min_length=2, description="name: {operation: name, **options}")


class SpaceFile(BaseModel):
    """What a file in ``search_spaces/`` holds.

    ``cell``: for networks of cells (``nas_prune.ops.cells``), what a cell is; ``replace``: modules that become choices.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    description: str = ""
    cell: dict[str, Any] | None = None
    replace: list[Replacement] = Field([], description="modules that become a choice of candidate operations")
    rules: list[SpaceRule] = Field(min_length=1)

    @property
    def stripes(self) -> bool:
        """Whether a rule is about stripes, which are traced only then."""
        return any("stripe" in rule.kinds for rule in self.rules)

    def rule(self, axis: Axis) -> SpaceRule | None:
        """The rule that decides about an axis."""
        return next((rule for rule in reversed(self.rules) if rule.about(axis)), None)

    def wider(self, axes: Axes) -> dict[str, int]:
        """The sizes that axes are to be widened to."""
        factors = {name: rule.widen for name, axis in axes.free.items() if (rule := self.rule(axis)) is not None}
        return {name: round(factor * axes[name].size) for name, factor in factors.items() if factor > 1}


@dataclass(frozen=True)
class SearchSpace:
    """The axes with their divisors, the axes outside the space frozen, and the least width of each.

    ``replaced``: the rules by which the model got its choices, before it was traced.
    """

    name: str
    axes: Axes
    minimum: Mapping[str, int]
    replaced: tuple[Replacement, ...] = ()

    @property
    def free(self) -> dict[str, Axis]:
        """The axes that may change."""
        return self.axes.free

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Choices that are open -> the axes of their candidates, of which exactly one stays."""
        known = self.axes.choices.items()
        return {choice: names for choice, names in known if all(self.axes[name].frozen is None for name in names)}

    @property
    def alone(self) -> dict[str, Axis]:
        """The open axes that are no candidate of a choice."""
        candidates = {name for names in self.choices.values() for name in names}
        return {name: axis for name, axis in self.free.items() if name not in candidates}

    def chosen(self, scores: Mapping[str, Tensor]) -> dict[str, bool]:
        """Axis of each candidate -> whether its score is the highest of its choice."""
        best = {max(names, key=lambda name: float(scores[name])) for names in self.choices.values()}
        return {name: name in best for names in self.choices.values() for name in names}

    @staticmethod
    def all(axes: Axes) -> SearchSpace:
        """Every free axis, unit by unit, down to one unit, branches and candidates down to none."""
        return SearchSpace(
            "all", axes, {name: int(axis.kind not in (*BITS, "stripe")) for name, axis in axes.free.items()}
        )

    @staticmethod
    def read(name: str | os.PathLike[str], axes: Axes) -> SearchSpace:
        """A space by the name of a shipped file, or by path, laid over the axes of a model."""
        file = read_file(name)
        named: dict[str, Axis] = {}
        minimum: dict[str, int] = {}
        for key, axis in axes.items():
            rule = file.rule(axis)
            if axis.frozen is not None:
                named[key] = axis
            elif rule is None or rule.freeze is not None:
                named[key] = replace(
                    axis, frozen=rule.freeze if rule and rule.freeze else f"not in search space {name}"
                )
            else:
                divisor = _divisor(rule, axis)
                named[key] = replace(axis, divisor=divisor)
                least = min(axis.size, max(divisor, divisor * ceil(rule.minimum * axis.size / divisor)))
                stripes = ceil(rule.minimum * axis.size)  # a convolution may lose them all
                minimum[key] = 0 if axis.kind in BITS else stripes if axis.kind == "stripe" else least
        if not minimum:
            raise SpaceError(
                f"search space {name} leaves nothing to change: every axis of the model is frozen or unmatched"
            )
        return SearchSpace(str(name), replace(axes, named=named), minimum, tuple(file.replace))

    def narrowed(self, axes: Axes) -> SearchSpace:
        """This space over what is left of its axes: with its divisors, its least widths and its reasons to freeze."""
        named, minimum = dict[str, Axis](), dict[str, int]()
        for name, axis in axes.items():
            known = self.axes.get(name)
            why = axis.frozen or (known.frozen if known else "what is left of an axis that was frozen")
            named[name] = replace(axis, frozen=why, divisor=known.divisor if known else 1)
            if why is None:
                minimum[name] = min(axis.size, self.minimum[name])
        return replace(self, axes=replace(axes, named=named), minimum=minimum)

    def stepped(self, steps: Mapping[str, int]) -> SearchSpace:
        """The same axes with other divisors, halved until an axis has two widths; the least widths follow."""
        named, minimum = dict(self.axes.named), dict(self.minimum)
        for name, step in steps.items():
            axis = self.free[name]
            while step > 1 and axis.size // step < 2:
                step //= 2
            named[name] = replace(axis, divisor=step)
            minimum[name] = min(axis.size, step * ceil(minimum[name] / step))
        return replace(self, axes=replace(self.axes, named=named), minimum=minimum)


def _divisor(rule: SpaceRule, axis: Axis) -> int:
    """The rule's divisor, halved until the axis has enough widths."""
    divisor = rule.divisor
    while divisor > 1 and axis.size // divisor < rule.widths:
        divisor //= 2
    return divisor


def spaces() -> dict[str, Path]:
    """The shipped search spaces by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*.yaml"))}


def read_file(name: str | os.PathLike[str]) -> SpaceFile:
    """What a search-space file says, by the name of a shipped one or by path."""
    known = spaces()
    path = known.get(str(name), Path(name))
    if not isfile(path):
        raise SpaceError(
            f"no search space {shown(str(name))}: neither a file nor a shipped one{hint(str(name), list(known))}"
        )
    content = read_mapping(path, SpaceError)
    try:
        return SpaceFile.model_validate(content)
    except ValidationError as error:
        raise SpaceError(f"{path} is not a search space: {explained(error, SpaceFile)}") from None
