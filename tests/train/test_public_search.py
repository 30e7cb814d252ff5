"""What the settings of a search say holds for `npr.search` as for a run: criteria, penalties, and what they are not."""

from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from asked import ask
from torch.utils.data import DataLoader, TensorDataset

from nas_prune.costs import Budget, Macs, Params
from nas_prune.costs.limits import joint
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.penalties.growing import Growing
from nas_prune.methods.selectors import Question, selectors
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.choose import Met
from nas_prune.train.data.loaders import from_loaders
from nas_prune.train.learner import Learner
from nas_prune.train.loop import Run
from nas_prune.train.record.progress import Bars
from nas_prune.train.search import Parts, moved, search
from nas_prune.train.settings import SearchSettings

IMAGES, LABELS = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
QUICK = {"warmup": 0, "joint": 1, "freeze": 0, "lr": 0.01}


@pytest.fixture
def gated() -> GatedModel:
    return net("weight")


def net(gate: str) -> GatedModel:
    """The same network every time, with gates."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    return GatedModel(model, SearchSpace.read("channels", trace(model, IMAGES[:2])), gate)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16)


class Listening(Bars):
    """Keeps what it is told to say."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def searched(gated: GatedModel, how: dict[str, Any], **given: Any) -> tuple[Arch, list[str]]:
    """The architecture at half of the MACs, and what has been said."""
    bars = Listening()
    run, settings = Run(Accelerator(cpu=True), bars=bars), SearchSettings.model_validate({**QUICK, **how})
    budget = Budget("0.5x", Macs(gated.axes))
    return search(gated, loader(), budget=budget, settings=settings, run=run, **given), bars.said


@pytest.mark.parametrize("gate", ["weight", "mask"])
def test_a_criterion_scores_in_one_shot_whatever_the_gates_say(gated: GatedModel, gate: str) -> None:
    scores = criteria["taylor"](gated, [(IMAGES, LABELS)])
    macs = Macs(gated.axes)
    expected = ask(selectors["optimal"], scores, macs, 0.5 * float(macs({})), gated.space)
    assert searched(net(gate), {"criterion": "taylor"})[0] == expected


def test_further_criteria_are_told_to_the_selector(gated: GatedModel) -> None:
    keep, batches, macs = {"magnitude": 0.9}, [(IMAGES, LABELS)], Macs(gated.axes)
    scores, others = (criteria[name](gated, batches) for name in ("taylor", "magnitude"))
    question = Question(scores, macs, 0.5 * float(macs({})), gated.space, {"magnitude": others})
    how = {"criterion": "taylor", "further": ["magnitude"]}
    how |= {"selector": {"name": "combined", "options": {"keep": keep}}}
    assert searched(gated, how)[0] == selectors["combined"](question, keep=keep).arch  # type: ignore[call-arg]


def test_the_penalties_of_the_settings_are_in_the_objective_unless_others_are_given(gated: GatedModel) -> None:
    criterion, growing = {"criterion": "magnitude"}, {"penalties": ["growing"]}
    given = [Growing(Budget("0.5x", Macs(gated.axes)))]

    def grew(how: dict[str, Any], **given: Any) -> bool:
        return any("growing: joint training ended" in each for each in searched(net("mask"), how, **given)[1])

    assert grew(criterion | growing)
    assert not grew(criterion | growing, penalties=[])
    assert grew(criterion, penalties=given)
    assert not grew(criterion)


def test_no_penalties_are_none(gated: GatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> torch.Tensor:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(BudgetPenalty, "forward", refused)
    assert searched(gated, {}, penalties=[])[0]
    with pytest.raises(AssertionError, match="nobody"):
        searched(gated, {})


def test_a_mover_aims_at_all_limits() -> None:
    gated, run = net("mask"), Run(Accelerator(cpu=True))
    macs, limit = Budget("0.9x", Macs(gated.axes)), Budget("0.2x", Params(gated.axes))
    how = {"mover": "soft_filter", "schedule": "sfp", "joint": 4}
    learner = Learner(gated, SearchSettings.model_validate(how), None)
    parts = Parts(macs, joint(macs, [limit]), lambda _: [], lambda gated, _: gated.scores(), lambda *_: Met(Arch()))
    _, mover = moved(learner, from_loaders(loader(), loader(), classes=10), parts, run=run)
    left = {name: axis.size - mover.gone[name] for name, axis in gated.space.free.items()}
    assert 0.5 * limit.limit < float(limit.cost(left)) <= limit.limit
