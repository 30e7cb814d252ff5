"""Shapley contribution: a unit's fair share in how good the network is, over all smaller networks it can be part of.

Xiao et al., "Shapley-NAS: Discovering Operation Contribution for Neural Architecture Search" (CVPR 2022,
arXiv 2206.09811): the weight of a candidate operation says little about what it contributes, its Shapley value does.
The paper's players are the candidates on each edge and its game is validation accuracy.

Ours: players are all branches and candidates of the search space, and, so that widths can be judged the same way,
groups of units of each other axis with weights of like norm (a group's value is shared equally by its units). An axis
cannot lose its last unit, so where a coalition has none, the one that the loss moves with least stands in. Worth is
-cross-entropy unless accuracy is asked for, since it varies less; batches are held fixed and the model is in eval mode
throughout, where the public code draws a new batch per permutation and leaves BatchNorm in whatever mode it was; and
the estimator needs fewer forward passes (``nas_prune.methods.shapley``).

Cost: as many forward passes over the batches as the plan allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_prune.base.axis import BITS
from nas_prune.base.errors import DataError
from nas_prune.methods.criteria.criterion import criteria, norms, per_image
from nas_prune.methods.criteria.of_loss.taylor import slopes_of
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches
from nas_prune.methods.shapley import Estimate, EstimatePlan, Game, estimate
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.capture import evaluating

SEED = 0  # of the permutations, so that the same model and batches get the same scores
PER_PLAYER = 10  # coalitions evaluated per player, unless a plan says otherwise: five pairs of walks
Objective = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Player:
    """Units of one axis that are kept or closed together."""

    axis: str
    units: tuple[int, ...]


@criteria.register("shapley")
def shapley(
    gated: GatedModel,
    batches: Batches,
    *,
    players: int = 32,
    objective: Objective = "loss",
    plan: EstimatePlan | None = None,
) -> dict[str, Tensor]:
    """Scores (c) per free axis: the unit's share in -cross-entropy (``loss``) or accuracy, of the network whose
    other units come and go.

    ``players``: branches and candidates are a player each, and groups of units of the other axes make up the number,
    two per axis at least. ``plan``: how many coalitions, each a pass over the batches, when to stop, and which
    processes share the work (all with the same batches); without one, ten per player, and until the best candidate of
    every choice is known where all players are candidates.
    Raises DataError without a batch, DivergedError where a loss is not a number.
    """
    team = players_of(gated, players)
    decided = sum(map(len, _choices(gated, team))) == len(team)  # then all that matters is the best of each choice
    plan = plan or EstimatePlan(PER_PLAYER * len(team), until="choices" if decided else None)
    found = contributions(gated, game_of(gated, batches, team, objective=objective), plan)
    scores = {name: torch.zeros_like(keep) for name, keep in gated.fixed(Arch()).keep().items()}
    for player, value in zip(team, found.values.tolist(), strict=True):
        scores[player.axis][list(player.units)] = value / len(player.units)
    return scores


def contributions(gated: GatedModel, game: Game, plan: EstimatePlan) -> Estimate:
    """Shapley values of the players of a game of ``gated``, with confidence intervals and what they cost."""
    generator = torch.Generator().manual_seed(SEED)
    with evaluating(gated), torch.no_grad():
        return estimate(game, plan, generator)


def game_of(
    gated: GatedModel, batches: Batches, team: Sequence[Player], *, objective: Objective = "loss", mixed: bool = False
) -> Game:
    """The game of the players; to be played in eval mode and without gradients.

    ``mixed``: a unit that plays counts as much as its gate says, instead of one.
    """
    fixed = list(batches)
    if not fixed:
        raise DataError("Shapley values need at least one batch of images and labels; there was none")
    always = _always(gated, team)
    emptied = [name for name in _widths(gated) if not always[name]]
    slopes = slopes_of(gated, fixed) if emptied else {}
    stand_in = {name: int(slopes[name].argmin()) for name in emptied}

    def worth(coalition: Tensor) -> float:
        kept = {name: list(units) for name, units in always.items()}
        for index in coalition.nonzero().flatten().tolist():
            kept[team[index].axis] += team[index].units
        kept |= {name: [unit] for name, unit in stand_in.items() if not kept[name]}
        opened = gated.fixed(Arch(kept), mixed=mixed)
        return per_image(opened, fixed, partial(_worth, objective=objective))

    return Game(worth, len(team), _choices(gated, team))


def players_of(gated: GatedModel, most: int) -> list[Player]:
    """Who plays: each branch and candidate, and groups of units of like norm of the other axes."""
    widths = _widths(gated)
    team = [Player(name, (0,)) for name in gated.space.free if name not in widths]
    share = max(2, (most - len(team)) // max(1, len(widths)))
    for name in widths:
        order = norms(gated, name).argsort(descending=True, stable=True)
        team += [Player(name, tuple(group.tolist())) for group in order.tensor_split(min(len(order), share))]
    return team


def _widths(gated: GatedModel) -> list[str]:
    """The axes that are neither branches nor candidates."""
    return [name for name, axis in gated.space.free.items() if axis.kind not in BITS]


def _always(gated: GatedModel, team: Sequence[Player]) -> dict[str, list[int]]:
    """The units of each axis that no player holds."""
    held = {(player.axis, unit) for player in team for unit in player.units}
    return {
        name: [unit for unit in range(axis.size) if (name, unit) not in held] for name, axis in gated.space.free.items()
    }


def _choices(gated: GatedModel, team: Sequence[Player]) -> tuple[tuple[int, ...], ...]:
    """The players that are candidates of one choice, per choice that has several."""
    place = {player.axis: index for index, player in enumerate(team)}
    choices = (tuple(place[name] for name in names if name in place) for names in gated.space.choices.values())
    return tuple(choice for choice in choices if len(choice) > 1)


def _worth(logits: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """What a batch says, summed over its images."""
    if objective == "accuracy":
        return (logits.argmax(-1) == labels).double().sum()
    return -F.cross_entropy(logits.double(), labels, reduction="sum")
