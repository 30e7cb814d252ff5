"""Growing regularisation: an L2 penalty on the units that will go, raised until next to nothing is left of them.

Wang et al., "Neural Pruning via Growing Regularization" (ICLR 2021, arXiv 2012.09243); constants of the authors' code.
To the gradient of W_j, all weights that write unit j, it adds lambda_j W_j, so the term is

    1/2 * sum over j of  lambda_j |W_j|^2

and every ``interval`` steps lambda is raised. GReg-1 picks at the start the units whose weights are least in magnitude
(L1), and raises theirs alone. GReg-2 raises that of all units first: near a minimum of curvature h, raising it by d
multiplies a weight by (h + lambda) / (h + lambda + d), so what the loss hardly feels shrinks fastest, and magnitudes
read the Hessian when it picks. GReg-1 is GReg-2 with a ``pick_ceiling`` of zero. Once the picked units of every axis
are a thousand times smaller than the others (mean |w|, averaged over updates), or lambda is at its ceiling, it stays:
the rest of the joint training is the phase in which weights settle. Weight decay comes on top; the optimizer has it.

Ours: a unit is that of an axis, so all convolutions of a residual stage lose the same ones; how many go from each axis
follows from the budget as predicted, by a selector; growth ends everywhere at once. ``search.criterion: magnitude``
with that selector then takes the picked units; where the measured cost moves the limit, a few more, or fewer. A weight
that two axes share (a head, and a unit of all heads) has the larger of their lambdas.

BatchNorm undoes a shrinkage, and a unit next to nothing of which is left still says its shift: what is cut off is about
a constant, act(beta), and no zero. So set ``search.compensation: mean``, which moves it into the layers that read it.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from nas_prune.base.errors import BudgetError, SpaceError
from nas_prune.costs import Budget
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.penalty import Penalty, penalties
from nas_prune.methods.selectors import Question, selectors
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.tracing.graph.brought import tensor_of
from nas_prune.tracing.roles.writers import numbered

APART = 1000.0  # kept over picked mean |w| at which a unit has gone: BatchNorm hides a shrinkage until var is eps
MOMENTUM = 0.9  # of the average of that ratio over updates
ROUNDING = 1e-9  # 0.3 / 0.1 is 2.9999999999999996 steps


@penalties.register("growing")
class Growing(Penalty):
    """``interval``: steps from one update of lambda to the next (5 for ImageNet). ``step``, ``ceiling``: by how much
    lambda is raised for the picked units, and how far; ``pick_step``, ``pick_ceiling``: for all units, before they are
    picked (GReg-2: 1e-2). ``kept``: lambda of the others afterwards (GReg-2: -1e-4). ``selector``: picks.

    The authors train for 1e4 updates; for shorter training, larger steps.
    """

    to_scale = True
    going: Tensor
    apart: Tensor

    def __init__(
        self,
        budget: Budget,
        *,
        interval: PositiveInt = 10,
        step: PositiveFloat = 1e-4,
        ceiling: PositiveFloat = 1.0,
        pick_step: PositiveFloat = 1e-5,
        pick_ceiling: NonNegativeFloat = 0.0,
        kept: float = 0.0,
        selector: str = "uniform",
    ) -> None:
        super().__init__()
        self.budget, self.select, self.interval, self.kept = budget, selectors[selector], interval, kept
        self.step, self.pick_step = step, pick_step
        self.raises = math.ceil(pick_ceiling / pick_step - ROUNDING)
        self.growths = max(1, math.ceil((ceiling - self.raises * pick_step) / step - ROUNDING))
        self.register_buffer("going", None)
        self.register_buffer("apart", None)
        self._shared: dict[str, list[tuple[str, Tensor]]] = {}
        self._restart()

    def begin(self, gated: GatedModel) -> None:
        """Nothing is picked yet."""
        rows = _written(gated)
        if not rows:
            raise SpaceError("growing: no weight writes an axis of the search space; take a space that has widths")
        like = next(iter(rows.values()))[0].detach()
        self.going = like.new_zeros(sum(len(each[0]) for each in rows.values()), dtype=torch.bool)
        self.apart = like.new_zeros(len(rows))
        self._shared = _shared(gated, rows)
        self._restart()

    def follow(self, before: Penalty) -> None:
        """A round has a limit and units of its own: growth begins anew."""

    def forward(self, gated: GatedModel) -> Tensor:
        """The penalty, (), for the weights as they are; in training mode, a step has passed."""
        if self.going is None:
            self.begin(gated)
        if self.training:
            if self.steps % self.interval == 0 and not self.settled:
                self._update(gated)
            self.steps += 1
        rows, factor = _written(gated), self.factor()
        squares = [torch.stack([each.square().sum(1) for each in matrices]).sum(0) for matrices in rows.values()]
        lambdas = dict(zip(rows, torch.split(factor, [len(each) for each in squares]), strict=True))
        return 0.5 * ((factor * torch.cat(squares)).sum() - self._counted_twice(gated, lambdas))

    def _counted_twice(self, gated: GatedModel, lambdas: Mapping[str, Tensor]) -> Tensor:
        """What weights of several axes pay over the largest of their lambdas, ()."""
        total = self.apart.new_zeros(())
        for name, places in self._shared.items():
            weight = tensor_of(gated.backbone, name).flatten()
            paid, largest = torch.zeros_like(weight), torch.full_like(weight, -math.inf)
            for axis, place in places:
                each = lambdas[axis][:, None].expand(place.shape)
                paid[place] += each
                largest[place] = torch.maximum(largest[place], each)
            total = total + ((paid - largest).where(largest > -math.inf, 0) * weight.square()).sum()
        return total

    def remark(self) -> str:
        """That it has not finished growing, if so."""
        if self.settled or not self.steps:
            return ""
        left = self.raises - self.raised + self.growths - self.grown
        return (
            f"growing: joint training ended after {self.steps} steps, before its penalty had grown: lambda is "
            f"{float(self.factor().max()):.3g} of {self.pick_step * self.raises + self.step * self.growths:.3g}, and "
            f"units are cut that are not small yet. It grows for up to {left * self.interval} steps more: train for "
            "longer (search.joint), or set a larger step or a smaller interval in the options of the penalty"
        )

    def factor(self) -> Tensor:
        """Lambda (u) of the units of all axes that weights write, one axis after the other."""
        everywhere = self.pick_step * self.raised
        others = self.kept if self.grown else everywhere
        return self.apart.new_full(self.going.shape, others).masked_fill(
            self.going, everywhere + self.step * self.grown
        )

    def get_extra_state(self) -> Tensor:
        """How far it has come."""
        return torch.tensor([self.steps, self.raised, self.grown, int(self.settled)])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.steps, self.raised, self.grown, settled = (int(each) for each in state)
        self.settled = bool(settled)

    def _restart(self) -> None:
        self.steps, self.raised, self.grown, self.settled = 0, 0, 0, False

    @torch.no_grad()
    def _update(self, gated: GatedModel) -> None:
        """Raise lambda, of all units or of the picked ones; pick between the two."""
        if self.raised < self.raises:
            self.raised += 1
            return
        if not self.grown:
            self.going = self._picked(gated).to(self.going.device)
        ratio = self._ratio(gated)
        self.apart = MOMENTUM * self.apart + (1 - MOMENTUM) * ratio if self.grown else ratio
        self.grown += 1
        self.settled = self.grown >= self.growths or bool((self.apart >= APART).all())

    def _picked(self, gated: GatedModel) -> Tensor:
        """Which units (u) go: those that the selector does not take, of all within the budget; of its smallest network,
        where not even that is predicted to be: in the end the device is asked about it."""
        scores = {name: each.cpu() for name, each in criteria["magnitude"](gated, [], norm=1).items()}  # type: ignore[call-arg]
        try:
            asked = Question(scores, self.budget.cost, self.budget.limit, gated.space, gated=gated)
            kept = self.select(asked).arch.kept
        except BudgetError as error:
            if error.smallest is None:
                raise
            kept = best_units(scores, error.smallest).kept
        stays = {name: torch.tensor(list(kept[name]), dtype=torch.long) for name in _written(gated)}
        return torch.cat([torch.ones(gated.axes[n].size).bool().index_fill(0, at, False) for n, at in stays.items()])

    def _ratio(self, gated: GatedModel) -> Tensor:
        """How many times larger (a) the kept units of each axis are than its picked ones; infinity where none is."""
        sizes = [torch.cat(rows, 1).abs().mean(1) for rows in _written(gated).values()]
        going = torch.split(self.going, [len(each) for each in sizes])
        pairs = [(size[~gone], size[gone]) for size, gone in zip(sizes, going, strict=True)]
        ratios = [kept.mean() / picked.mean() if len(picked) else kept.new_tensor(math.inf) for kept, picked in pairs]
        return torch.stack(ratios)


def _shared(gated: GatedModel, names: Iterable[str]) -> dict[str, list[tuple[str, Tensor]]]:
    """Weight that several axes write -> for each of these, which of its numbers, flattened, belong to a unit (c n)."""
    found: dict[str, list[tuple[str, Tensor]]] = {}

    def numbers(weight: str, _: int) -> Tensor:
        tensor = tensor_of(gated.backbone, weight)
        return numbered(tensor).to(tensor.device)

    for name in names:
        if not gated.gate(name).of_stripes:
            for weight, place in gated.rows(name, numbers):
                found.setdefault(weight, []).append((name, place))
    return {weight: places for weight, places in found.items() if len(places) > 1}


def _written(gated: GatedModel) -> Mapping[str, list[Tensor]]:
    """The weights, matrices (c n), that write each axis; what no weight writes (a branch, say) is left out."""
    rows = {name: gated.weights(name) for name in gated.space.free}
    return {name: each for name, each in rows.items() if each}
