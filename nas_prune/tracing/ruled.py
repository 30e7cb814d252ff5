"""The table of rules: what an operator does to the terms of its operands, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

    from nas_prune.tracing.terms import Dims
    from nas_prune.tracing.walk import Walk

Rule = Callable[["Walk", "Node"], "Dims | list[Dims]"]
RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    """Enter a rule for ATen operators, given as ``conv2d.default``."""

    def enter(function: Rule) -> Rule:
        for target in targets:
            assert target not in RULES, f"two rules for {target}"
            RULES[target] = function
        return function

    return enter
