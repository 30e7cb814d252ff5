"""Ascent: before an epoch, architecture weights go a step towards the Shapley values of what they weigh.

    s = z-score of the Shapley values in each stage (cell type),  m <- mu m + (1 - mu) s,  alpha <- alpha + xi m

Shapley-NAS (Xiao et al., arXiv 2206.09811), in the second half of the joint training, as in the paper. A candidate that
does not play is multiplied by 0 and the weights of the others stay as they are. Worth is that of images which weights
are not trained on (``holdout``), of others in each estimate, as in the paper. Ours: eval mode, no gradient, the same
batches throughout one estimate, and an estimator that needs fewer forward passes and says how sure it is.
``paper_mode`` has the public code's: one batch per permutation, walks that end at half of the accuracy, mean less
standard deviation.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files.documents import read_journal
from nas_prune.base.files.whole import write_lines
from nas_prune.methods.criteria.of_loss.shapley import Player, contributions, game_of
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.shapley import Contribution
from nas_prune.methods.movers import Aim, Mover
from nas_prune.methods.shapley import EstimatePlan, Processes, ascended, permutations, standardised
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.train.data.loaders import Data, FirstBatches
from nas_prune.train.data.order import seeded
from nas_prune.train.loop import Run
from nas_prune.train.record.journals import ShapleyRow
from nas_prune.train.settings import ShapleySettings

FILE = "shapley.jsonl"


class ShapleyAscent(Mover):
    """Moves gates called ``shapley`` before every epoch from the share ``start`` of them on, as ``data`` says."""

    def __init__(self, gated: GatedModel, aim: Aim, *, data: Data, settings: ShapleySettings, run: Run) -> None:
        super().__init__(gated, aim)
        self._with = (data, settings, run)

    def begin_epoch(self, epoch: int) -> None:
        """One step of every gate."""
        data, settings, run = self._with
        if epoch >= settings.start * self.aim.epochs:
            ascend(self.gated, data, settings, run, epoch=epoch)


def weighed(gated: GatedModel) -> dict[str, Contribution]:
    """The gates that are moved by Shapley values: choice, or axis of a branch -> gate."""
    found = {name: gated.gate(name) for name in gated.deciders}
    return {name: gate for name, gate in found.items() if isinstance(gate, Contribution)}


def ascend(gated: GatedModel, data: Data, settings: ShapleySettings, run: Run, *, epoch: int) -> None:
    """One step of every gate of kind ``shapley``, in place; what was found goes to ``shapley.jsonl``."""
    gates = weighed(gated)
    team = [Player(axis, (0,)) for name in gates for axis in gated.deciders[name]]
    count = settings.permutations if settings.paper_mode else settings.batches
    batches = list(FirstBatches(data, count, run.accelerator.device, epoch))
    if settings.paper_mode:
        values, row = _as_published(gated, batches, team, epoch)
    else:
        plan = EstimatePlan(evaluations=settings.evaluations, until="choices", processes=Processes.of(run.accelerator))
        game = game_of(gated, batches, team, objective=settings.objective, mixed=True)
        found = contributions(gated, game, plan)
        half = dict(zip((player.axis for player in team), found.half_width.tolist(), strict=True))
        values, row = found.values, {"half_width": half, "settled": found.settled, "evaluations": found.evaluations}
    named = dict(zip((player.axis for player in team), values, strict=True))
    for names in _stages(gates):
        _step({name: gates[name] for name in names}, gated, named, settings)
    if run.folder is not None and run.accelerator.is_main_process:
        content = {name: float(value) for name, value in named.items()}
        known = read_journal(run.folder / FILE, ShapleyRow, CheckpointError)
        earlier = [each for each in known if each["epoch"] < epoch]  # an epoch may be repeated
        write_lines(run.folder / FILE, [*earlier, {"epoch": epoch, "values": content, **row}])


def _as_published(
    gated: GatedModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    team: Sequence[Player],
    epoch: int,
) -> tuple[Tensor, dict[str, Any]]:
    """Scores of the public code: a permutation per batch, of accuracies in points."""
    orders = torch.rand(len(batches), len(team), generator=seeded(epoch)).argsort(1)
    walks, evaluations = [], 0
    with evaluating(gated), torch.no_grad():
        for batch, order in zip(batches, orders, strict=True):
            game = game_of(gated, [batch], team, objective="accuracy", mixed=True)
            walks.append(100 * permutations(game, order[None], paper_mode=True).marginals)
            evaluations += game.evaluations
    marginals = torch.cat(walks)
    return marginals.mean(0) - marginals.std(0, correction=0), {"evaluations": evaluations, "paper_mode": True}


def _stages(gates: dict[str, Contribution]) -> Iterator[list[str]]:
    """Names by stage or cell type: scores are compared within these (the paper: within a cell type)."""
    stages: dict[str, list[str]] = {}
    for name in gates:
        stages.setdefault(name.partition(".")[0], []).append(name)
    yield from stages.values()


def _step(
    gates: dict[str, Contribution], gated: GatedModel, values: dict[str, Tensor], settings: ShapleySettings
) -> None:
    """One step of the gates of one stage."""
    each = {name: torch.stack([values[axis] for axis in gated.deciders[name]]) for name in gates}
    sizes = [len(value) for value in each.values()]
    scores = torch.split(standardised(torch.cat(list(each.values()))), sizes)
    for gate, score in zip(gates.values(), scores, strict=True):
        alpha, momentum = ascended(gate.alpha, gate.momentum, score.to(gate.alpha), mu=settings.mu, xi=settings.xi)
        gate.alpha.copy_(alpha)
        gate.momentum.copy_(momentum)
