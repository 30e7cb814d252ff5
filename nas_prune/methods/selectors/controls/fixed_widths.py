"""Fixed widths: those that one is told, and of each the best units by the scores. It looks at no cost. Ours.

With scores by lot it is the control that says what a method's choice of units is worth beside its choice of widths.
"""

from collections.abc import Mapping

from nas_prune.base.errors import SpaceError
from nas_prune.base.registry import hint
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors


@selectors.register("fixed_widths")
def fixed_widths(question: Question, *, widths: Mapping[str, int] | None = None) -> Decision:
    """The best units at these sizes, axis by axis; one that is left out stays as it is.

    Raises SpaceError for an axis that is not in the space, and for a size that its axis does not have.
    """
    free, told = question.space.free, widths or {}
    for name, width in told.items():
        if name not in free:
            raise SpaceError(f"fixed_widths: no axis {name!r} in search space {question.space.name}{hint(name, free)}")
        if not question.space.minimum[name] <= width <= free[name].size:
            least, most = question.space.minimum[name], free[name].size
            raise SpaceError(f"fixed_widths: axis {name} has {least} to {most} units in this space, not {width}")
    return Decision(best_units(question.scores, {name: told.get(name, axis.size) for name, axis in free.items()}))
