"""What selectors are asked in tests, and gates that learn without one."""

from torch import nn

from nas_prune.costs import Budget, Macs
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.schedules import Phase
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors import Question, Selector
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.choose import Met
from nas_prune.train.data.loaders import Data
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run
from nas_prune.train.rounds import rounds_of
from nas_prune.train.search import Parts, learn, warm_up
from nas_prune.train.settings import SearchSettings


def ask(select: Selector, *task: object, **options: object) -> Arch:
    """The architecture that a selector decides on, by scores, cost, limit and space."""
    return select(Question(*task), **options).arch  # type: ignore[arg-type]


def asked(scores: Scores, budget: Budget, space: SearchSpace) -> Question:
    """The question under a budget."""
    return Question(scores, budget.cost, budget.limit, space)


def learnt(gated: GatedModel, data: Data, penalties: list[nn.Module], settings: SearchSettings, run: Run) -> None:
    """Warm-up and joint training under these penalties, without a decision."""
    budget = Budget("1x", Macs(gated.axes))
    parts = Parts(budget, budget, lambda _: penalties, lambda gated, _: gated.scores(), lambda *_: Met(Arch()))
    learner = Learner(gated, settings, None)
    warm_up(learner, data, parts, run=run)
    (whole,) = rounds_of(1, settings.joint, lambda *_: Phase(1.0, 1.0))
    learn(learner, data, parts, whole, run=run)
