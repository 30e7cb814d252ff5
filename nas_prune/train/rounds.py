"""Rounds of a search: when each of them ends, how much has gone by then, and what of the model is left.

What a round has closed is closed for good: it is removed, so the next round is faster. (HALP, arXiv 2210.06659, and
iterative pruning in general; that weights and their momentum go on in a smaller model is ours.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from nas_prune.base.parts import bound
from nas_prune.costs import Budget, CostModel
from nas_prune.costs.left import Left
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import Places, Removal, put_back
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.schedules import Schedule
from nas_prune.methods.scores import Batches, Scores
from nas_prune.methods.selectors import Question
from nas_prune.tracing.arch import Arch
from nas_prune.train.settings import CriterionSettings

TRIES = 4  # of architectures that are derived and measured in a round that is not the last


@dataclass(frozen=True)
class Round:
    """``number`` of ``rounds`` (1-based): the epochs it begins after and takes, and the share of what goes that is gone
    after it. ``gone``: that share, of how many joint epochs have passed, in the middle of one, too."""

    number: int
    rounds: int
    first: int
    epochs: int
    share: float
    gone: Callable[[float], float]

    @property
    def last(self) -> bool:
        """Whether what follows is the decision."""
        return self.number == self.rounds

    @property
    def name(self) -> str:
        """The end of its name in stages and files, such as -2; empty where there is one round only."""
        return ending(self.number, self.rounds)

    def limit(self, budget: Budget) -> float:
        """What the network may cost after this round, in the unit of the budget."""
        return _limits(budget)(self.share)

    def budget(self, budget: Budget) -> Budget:
        """The budget of this round."""
        return budget if self.last else Budget.of(self.limit(budget), budget.cost)

    def tries(self, *, measured: bool, most: int = 12) -> int:
        """How many architectures may be tried for it: ``most`` in the end, a few before if costs are ``measured``, and
        one if they are known without."""
        return most if self.last else min(most, TRIES) if measured else 1

    def sliding(self, budget: Budget) -> Callable[[float], float]:
        """The same between rounds: what it may cost, of how many joint epochs have passed."""
        limit = _limits(budget)
        return lambda passed: limit(self.gone(passed))


WHOLE = Round(1, 1, 0, 0, 1.0, lambda _: 1.0)


def ending(number: int, rounds: int) -> str:
    """How names of what a round leaves end."""
    return f"-{number}" if rounds > 1 else ""


def _limits(budget: Budget) -> Callable[[float], float]:
    """What the network may cost, of what share of all that has to go is gone, in the unit of the budget."""
    dense = float(budget.cost({}).detach())
    return lambda share: dense - share * max(0.0, dense - budget.limit)


def rounds_of(rounds: int, epochs: int, schedule: Schedule) -> Iterator[Round]:
    """The rounds among which the epochs are shared out evenly."""

    def gone(passed: float) -> float:
        return schedule(passed - 1, epochs).closed

    for number in range(1, rounds + 1):
        first, end = (epochs * each // rounds for each in (number - 1, number))
        share = 1.0 if number == rounds else schedule(number - 1, rounds).closed
        yield Round(number, rounds, first, end - first, share, gone)


def rated(gated: GatedModel, criterion: CriterionSettings, batches: Batches) -> Scores:
    """Scores (c) per axis: what the criterion says of the units, if one is named, or what the gates have learnt."""
    found: Scores = (
        bound("search.criterion", criteria, criterion, 2)(gated, batches) if criterion.name else gated.scores()
    )
    return found


@dataclass(frozen=True)
class Alive:
    """What is left of the gated model ``whole``: ``gated``, of its units ``kept``, and the places of its weights
    where these are others."""

    whole: GatedModel
    gated: GatedModel
    kept: Arch
    places: Places

    @staticmethod
    def all(gated: GatedModel) -> Alive:
        """The whole: nothing has gone yet."""
        return Alive(gated, gated, Arch(), {})

    def arch(self, arch: Arch) -> Arch:
        """An architecture of what is left, in units of the whole."""
        return arch.within(self.kept)

    def cost(self, cost: CostModel) -> CostModel:
        """A cost of the whole as a function of the axes that are left."""
        return Left(cost, self.kept.sizes(self.whole.space.free)) if self.kept.kept else cost

    def question(
        self,
        scores: Scores,
        budget: Budget,
        *,
        further: Mapping[str, Scores] | None = None,
        batches: Batches = (),
        seed: int = 0,
    ) -> Question:
        """Which of the units that are left make the best network within the budget of the whole?"""
        cost, gated = self.cost(budget.cost), self.gated
        return Question(scores, cost, budget.limit, gated.space, further or {}, gated=gated, batches=batches, seed=seed)

    def scores(self, scores: Scores) -> Scores:
        """Scores (c) of the whole: units that have gone come last, in every axis and in all."""
        least = min(0.0, *(float(each.min()) for each in scores.values())) - 1
        found = {}
        for name, axis in self.whole.space.free.items():
            units = torch.tensor(self.kept.kept.get(name, range(axis.size)), dtype=torch.long)
            left = scores[name].cpu() if name in scores else torch.zeros(len(units))
            found[name] = left.new_full((axis.size,), least).index_copy(0, units, left)
        return found

    def without(self, removal: Removal) -> tuple[Alive, Places] | None:
        """What is left after a removal, gated again, and the places that its state had in that of ``gated``; None where
        there is nothing left to gate."""
        found = gated_again(self.gated, removal)
        if found is None:
            return None
        again, places = found
        return Alive(self.whole, again, self.arch(removal.kept), self._composed(removal.places)), places

    def put_back(self, removal: Removal) -> None:
        """Write what has been learnt to its places in the whole."""
        put_back(self.whole.backbone, removal.small, self._composed(removal.places))

    def _composed(self, places: Places) -> Places:
        """Places in the whole of what has these places in ``gated.backbone``."""
        known = self.places.items()
        return {**places, **{name: place.flatten()[places[name]] for name, place in known if name in places}}
