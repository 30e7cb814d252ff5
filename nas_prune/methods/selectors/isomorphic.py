"""Isomorphic: units are ranked among those of layers that are built alike, and all such groups keep the same share.

Fang et al., "Isomorphic Pruning for Vision Models" (arXiv 2407.04616): scores of differently built parts differ in
distribution, so one ranking over all of them empties some and spares others. Here axes are of one group if they are of
one kind and run through the same dimensions of the same kinds of layers in the same roles, in the same order; sizes do
not count, as in the paper. Branches are such groups, too. Which share is kept follows from the limit (ours).
"""

from collections.abc import Mapping

from nas_prune.base.axis import Axis
from nas_prune.methods.scores import finite
from nas_prune.methods.selectors.ranked import best_first, best_units, widths_of
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import STEPS, largest

Group = tuple[str, ...]


@selectors.register("isomorphic")
def isomorphic(question: Question) -> Decision:
    """The widest architecture of one share for all groups within the limit.

    Raises BudgetError where none is, DivergedError where a score is not a finite number.
    """
    space, groups = question.space, groups_of(question)
    scores = finite({name: question.scores[name] for name in space.free})
    chosen = {name: float(each) for name, each in space.chosen(scores).items()}
    axes = [{name: space.free[name] for name in names} for _, names in groups]
    orders = [best_first(scores, each)[0] for each in axes]

    def sizes(step: int) -> dict[str, float]:
        found = dict(chosen)
        for order, each in zip(orders, axes, strict=True):
            gone = round((1 - step / STEPS) * len(order))
            found |= widths_of(order[: len(order) - gone], each, space.minimum)
        return found

    if question.spent(sizes(0)) > question.limit:
        raise question.out_of_reach(sizes(0))
    step = largest(STEPS, lambda step: question.spent(sizes(step)) <= question.limit)
    return Decision(best_units(scores, sizes(step)))


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
