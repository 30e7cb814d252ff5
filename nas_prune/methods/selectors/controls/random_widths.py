"""Random widths: shares by lot, which every choice of widths has to beat (arXiv 1810.05270 asks for that control).

Each width draws u from [0, 1) and keeps the share u^t of its units, the best ones; t is the smallest at which the
network is within the limit, so t = 0 is the dense one. Branches and the best candidates stay. Ours.
"""

import torch

from nas_prune.base.axis import BITS
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import largest
from nas_prune.tracing.arch import allowed_width

HIGHEST, PARTS = 16, 64  # the largest power, and in how many parts of 1 powers are told apart


@selectors.register("random_widths")
def random_widths(question: Question) -> Decision:
    """The widest architecture within the limit for the shares that the seed draws. Raises BudgetError if none is."""
    generator, space = question.generator(), question.space
    drawn = {name: float(torch.rand((), generator=generator)) for name in sorted(space.alone)}
    chosen = {name: float(each) for name, each in space.chosen(question.scores).items()}

    def sizes(step: int) -> dict[str, float]:
        found, power = dict(chosen), HIGHEST - step / PARTS
        for name, axis in space.alone.items():
            share = 1.0 if axis.kind in BITS else drawn[name] ** power
            found[name] = float(max(space.minimum[name], allowed_width(axis, share * axis.size)))
        return found

    if question.spent(sizes(0)) > question.limit:
        raise question.out_of_reach(sizes(0))
    step = largest(HIGHEST * PARTS, lambda step: question.spent(sizes(step)) <= question.limit)
    return Decision(best_units(question.scores, sizes(step)))
