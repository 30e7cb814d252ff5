"""Parts that decide about units, each asked once about a copy of the model: whether they can work on it at all.

A criterion, a selector, a mover and a compensation say by an error that a model, or a search space, is nothing for
them, and most say it at once or after one look at images. So each is run as it is, on two images that mean nothing, for
a while (``SECONDS``) and no longer; what it answers is not used. A selector is asked for a network of any cost, since
whether the budget can be met is for the calibration to say. What depends on images (a loss that is not a number, say)
or on the limit is no objection here.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nas_prune.base.errors import BudgetError, DataError, DivergedError, first_line
from nas_prune.base.parts import bound
from nas_prune.costs import Budget, CostModel, Macs, costs
from nas_prune.costs.limits import joint
from nas_prune.methods.compensations import compensations
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.movers import Aim, movers
from nas_prune.methods.schedules import schedules
from nas_prune.methods.selectors import Question
from nas_prune.run import build
from nas_prune.run.calibration.sampling import smallest
from nas_prune.run.checks import blaming, naming
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.rehearsal.for_a_while import for_a_while
from nas_prune.tracing import Axes
from nas_prune.train.data.order import drawing

SECONDS = 2.0  # that each part may take; on a small model all but the longest come to their end


def rehearse_parts(recipe: Recipe, trial: GatedModel, images: Tensor) -> None:
    """Raise what the recipe's parts have against this model, on whose copy with gates they are tried; the copy is
    of no use afterwards."""
    search, batches = recipe.search, [(images, torch.zeros(len(images), dtype=torch.long))]
    named = {"search.criterion": search.criterion}
    named |= {f"search.further.{number}": each for number, each in enumerate(search.further)}
    for key, settings in named.items():
        if settings.name is not None:
            _briefly(recipe, key, partial(bound(key, criteria, settings, 2), trial, batches))
    cost, scores = _cost(recipe, trial.axes), trial.scores()
    question = Question(
        scores,
        cost,
        float(cost({}).detach()),
        trial.space,
        further={str(each.name): scores for each in search.further},
        gated=trial,
        batches=batches,
    )
    _briefly(recipe, "search.selector", partial(build.selector(search), question))
    if search.compensation.name is not None:
        compensate = bound(key := "search.compensation", compensations, search.compensation, 3)
        _briefly(recipe, key, partial(compensate, trial, smallest(trial.space), batches))
    if search.mover.name is not None:
        aim = Aim(Budget("1x", Macs(trial.axes)), 1, bound("search.schedule", schedules, search.schedule, 2))
        _briefly(recipe, "search.mover", partial(bound("search.mover", movers, search.mover, 2), trial, aim))


def _briefly(recipe: Recipe, key: str, ask: Callable[[], object]) -> None:
    """Ask for a while, with nothing drawn from elsewhere, and nothing logged of what means nothing."""
    log = logging.getLogger("nas_prune")
    level, said = log.level, ""
    log.setLevel(logging.CRITICAL)
    try:
        with naming(key), blaming(key), drawing(recipe.seed, "trial"):
            for_a_while(ask, SECONDS)
    except (BudgetError, DataError, DivergedError) as error:
        said = first_line(error)
    finally:
        log.setLevel(level)
    if said:
        log.debug("%s in the rehearsal: %s", key, said)


def _cost(recipe: Recipe, axes: Axes) -> CostModel:
    """What a selector will be told to keep within its limit; MACs, where that is not known before a calibration."""
    if "latency" in (recipe.budget.cost, *recipe.budget.limits):
        return Macs(axes)
    limits = [Budget(target, costs[name](axes)) for name, target in recipe.budget.limits.items()]
    return joint(Budget(recipe.budget.target, costs[recipe.budget.cost](axes)), limits).cost
