"""Clusters: of units that do the same job, those of the least scores go, and one of each such group always stays.

Qin et al., "Functionality-Oriented Convolutional Filter Pruning" (arXiv 1810.07322): the job of a filter is the picture
that excites it most, filters whose pictures are alike are groups, and of each group the share r of least contribution
goes, never all. Meant for the criterion ``functionality``, which says what that is.

Ours: r is not set by hand. A unit of rank k among the n of its group, the lowest first, goes at r = (k + 1) / n; all
axes keep the same share of their units, as many as the limit allows, those that go at the highest r. With ``merge``, of
those that stay in a group the one of the most similar picture takes over what is read of each that goes, by an edit of
the weights that read it. Units of several rows of weights (heads) have no picture, and are ranked by their scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from pydantic import PositiveInt
from torch import Tensor

from nas_prune.methods.criteria.criterion import at_least_one
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.pictures.filters import filters
from nas_prune.methods.pictures.groups import groups
from nas_prune.methods.pictures.maximised import STEPS, maximised
from nas_prune.methods.pictures.merged import Moments, merged, moments_of
from nas_prune.methods.pictures.sheet import sheet
from nas_prune.methods.scores import Batches, finite
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import uniform_sizes
from nas_prune.tracing.graph.capture import evaluating


@dataclass(frozen=True)
class Jobs:
    """What units do, by axis: ``pictures`` (c i h w), the number of the group of each (c); and how much units agree in
    what is read of them."""

    pictures: Mapping[str, Tensor]
    groups: Mapping[str, Tensor]
    moments: Moments


@selectors.register("clusters")
def clusters(question: Question, *, merge: bool = True, steps: PositiveInt = STEPS) -> Decision:
    """The widest architecture of one share for all widths within the limit that keeps one unit of every group.

    ``merge``: those that stay take over. ``steps`` of the ascent of a picture. Raises BudgetError where nothing is
    within the limit, DataError without images.
    """
    gated = question.model("clusters")
    jobs: Jobs = question.once("jobs of units", lambda: _jobs(gated, question.batches, steps, question.seed))
    scores, least = finite(question.scores), dict(question.space.minimum)
    for name, group in jobs.groups.items():
        scores[name], axis = turns(group, scores[name]), question.space.free[name]
        kept = axis.divisor * ceil(len(torch.unique(group)) / axis.divisor)
        least[name] = max(least[name], min(axis.size, kept))
    arch = best_units(scores, uniform_sizes(replace(question, space=replace(question.space, minimum=least))))
    twins = {name: twins_of(jobs.pictures[name], group, arch.kept[name]) for name, group in jobs.groups.items()}
    drawn = {
        name: sheet(jobs.pictures[name], group, scores[name], arch.kept[name]) for name, group in jobs.groups.items()
    }
    return Decision(arch, merged(gated, jobs.moments, twins) if merge else {}, pictures=drawn)


def _jobs(gated: GatedModel, batches: Batches, steps: int, seed: int) -> Jobs:
    """The pictures of all units that have one, and what comes of them."""
    fixed = at_least_one(batches, "the selector of clusters")
    model, like = gated.plain(), fixed[0][0][0]
    with evaluating(model):
        places = {name: each for name, each in filters(gated).items() if each.each == 1}
        found = {name: maximised(model, each, like, steps=steps).cpu() for name, each in places.items()}
    return Jobs(found, {name: groups(each, seed) for name, each in found.items()}, moments_of(gated, fixed))


def turns(group: Tensor, scores: Tensor) -> Tensor:
    """Scores (c): first by the r at which a unit goes, by its own score among equals."""
    turn = torch.zeros(len(group), dtype=torch.float64)
    for number in torch.unique(group):
        own = (group == number).nonzero().flatten()
        turn[own[scores[own].argsort(stable=True)]] = torch.arange(1, len(own) + 1).double() / len(own)
    order = sorted(range(len(group)), key=lambda unit: (float(turn[unit]), float(scores[unit])))
    return torch.zeros(len(group)).scatter(0, torch.tensor(order), torch.arange(len(group)).float())


def twins_of(pictures: Tensor, group: Tensor, kept: Sequence[int]) -> dict[int, int]:
    """Each unit that goes -> the one of its group that stays and sees most alike."""
    rows = pictures.flatten(1)
    alike = rows @ rows.T
    found: dict[int, int] = {}
    for unit in sorted({*range(len(group))} - set(kept)):
        others = torch.tensor([each for each in kept if group[each] == group[unit]])
        found[unit] = int(others[alike[unit, others].argmax()])
    return found
