"""A budget: a limit in one cost, absolute (``4.0ms``, ``2G``) or relative to the dense model (``0.5x``)."""

import re
from dataclasses import dataclass, field

from nas_prune.base.errors import RecipeError, shown
from nas_prune.costs.cost import CostModel

SCALE = {"k": 1e3, "M": 1e6, "G": 1e9, "": 1.0}


@dataclass(frozen=True)
class Budget:
    """``target`` as text, and the cost model that it limits.

    ``limit``: in the unit of the cost; ``relative``: whether it is a share of the dense model's cost.

    >>> npr.Budget("0.5x", cost=Macs(axes)).limit, npr.Budget("2M", cost=Macs(axes)).limit
    (2049504.0, 2000000.0)
    """

    target: str
    cost: CostModel
    limit: float = field(init=False)
    relative: bool = field(init=False)

    def __post_init__(self) -> None:
        number, unit = parse_target(self.target)
        timed = self.cost.unit == "ms"
        if unit != "x" and (unit == "ms") != timed:
            raise RecipeError(f"the budget {self.target!r} is not in {self.cost.unit}; {_forms(timed)}")
        scale = float(self.cost({}).detach()) if unit == "x" else SCALE.get(unit, 1.0)
        if not number * scale > 0:
            raise RecipeError(f"the budget {self.target!r} must be above zero")
        object.__setattr__(self, "limit", number * scale)
        object.__setattr__(self, "relative", unit == "x")

    @staticmethod
    def of(limit: float, cost: CostModel) -> "Budget":
        """An absolute limit, in the unit of the cost."""
        return Budget(f"{limit!r}{'ms' if cost.unit == 'ms' else ''}", cost)


def _forms(timed: bool) -> str:
    """How a target can be written, of latency or of what is counted."""
    return f"write 0.5x (of the dense model), or {'4.0ms' if timed else '2G, 300M, 25k'}"


def parse_target(target: str) -> tuple[float, str]:
    """Number and unit of a target; RecipeError says which forms there are."""
    parsed = _parsed(target)
    if parsed is None:
        raise RecipeError(f"cannot read the budget {target!r}; {_forms(True)}, or 2G, 300M, 25k of what is counted")
    return parsed


def _parsed(target: str) -> tuple[float, str] | None:
    match = re.fullmatch(r"\s*(-?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(x|ms|k|M|G|)\s*", target)
    return None if match is None else (float(match[1]), match[2])


def checked_target(key: str, target: str, cost: str) -> tuple[float, str]:
    """Number and unit of the target of a cost, under a key of a recipe.

    Raises RecipeError, naming the key, for what is no target, nothing at all, or of another cost's unit.
    """
    parsed, forms = _parsed(target), _forms(cost == "latency")
    if parsed is None:
        raise RecipeError(f"{key}: cannot read {shown(target)}; {forms}")
    number, unit = parsed
    if not 0 < number < float("inf"):
        raise RecipeError(f"{key} {shown(target)} must be above zero and finite; {forms}")
    if unit != "x" and (unit == "ms") != (cost == "latency"):
        raise RecipeError(f"{key} {shown(target)} is no figure of {cost}; {forms}")
    return number, unit
