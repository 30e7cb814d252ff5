"""Isomorphic: units are ranked among those of layers that are built alike, and all such groups keep the same share.

Fang et al., "Isomorphic Pruning for Vision Models" (arXiv 2407.04616): scores of differently built parts differ in
distribution, so one ranking over all of them empties some and spares others. Here axes are of one group if they are of
one kind and run through the same dimensions of the same kinds of layers in the same roles, in the same order; sizes do
not count, as in the paper. Branches are such groups, too. Which share is kept follows from the limit (ours).
"""

from collections.abc import Mapping

import torch

from nas_prune.base.axis import Axis
from nas_prune.methods.selectors.ranked import best_units, width_above
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import STEPS, largest

Group = tuple[str, ...]


@selectors.register("isomorphic")
def isomorphic(question: Question) -> Decision:
    """The widest architecture of one share for all groups within the limit. Raises BudgetError where none is."""
    space, groups = question.space, groups_of(question)
    chosen = {name: float(each) for name, each in space.chosen(question.scores).items()}
    ranked = {group: torch.cat([question.scores[name] for name in names]).sort().values for group, names in groups}

    def sizes(step: int) -> dict[str, float]:
        found = dict(chosen)
        for group, names in groups:
            gone = round((1 - step / STEPS) * len(ranked[group]))
            threshold = float(ranked[group][gone]) if gone < len(ranked[group]) else float("inf")
            for name in names:
                width = width_above(question.scores, threshold, space.free[name], space.minimum[name])
                found[name] = float(width)
        return found

    if question.spent(sizes(0)) > question.limit:
        raise question.out_of_reach(question.spent(sizes(0)))
    step = largest(STEPS, lambda step: question.spent(sizes(step)) <= question.limit)
    return Decision(best_units(question.scores, sizes(step)))


def groups_of(question: Question) -> list[tuple[Group, list[str]]]:
    """The axes by group; candidates of choices are in none."""
    found: dict[Group, list[str]] = {}
    for name, axis in question.space.alone.items():
        found.setdefault(group_of(axis, _kinds(question)), []).append(name)
    return list(found.items())


def group_of(axis: Axis, kinds: Mapping[str, str]) -> Group:
    """How the layers are built that an axis runs through; ``kinds``: path of a module -> name of its class."""
    through = []
    for member in axis.members:
        path, _, tensor = member.tensor.rpartition(".")
        through.append(f"{kinds.get(path, '')}.{tensor}.{member.dim}.{member.role}")
    return (axis.kind, *through)


def _kinds(question: Question) -> dict[str, str]:
    """Path of every module -> name of its class; nothing where there is no model."""
    model = question.gated.backbone if question.gated is not None else None
    return {path: type(module).__name__ for path, module in model.named_modules()} if model is not None else {}
