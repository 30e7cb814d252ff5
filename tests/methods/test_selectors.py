"""Laws of selectors: within the limit, in the space, never worth less than one threshold; known answers are found."""

import re
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from asked import ask
from scipy.optimize import milp as scipy_milp
from torch import Tensor, nn
from zoo import few, traced

from nas_prune.base.axis import Axis, Member
from nas_prune.base.errors import BudgetError, DivergedError, RecipeError, SpaceError
from nas_prune.costs import Budget, Limits, Macs, Params, Predictor
from nas_prune.methods.scores import Scores
from nas_prune.methods.selectors import Question, milp, selectors
from nas_prune.methods.selectors.isomorphic import groups_of
from nas_prune.methods.selectors.milp import program
from nas_prune.methods.selectors.optimal import optimal
from nas_prune.methods.selectors.price import price
from nas_prune.methods.selectors.ranked import above, best_units, ranked
from nas_prune.methods.selectors.solver.problem import pose, values, widths
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.settings import SearchSettings

APART = {"genotype", "fixed_widths"}  # they look at no cost
APART |= {"clusters", "greedy_residual", "sampling"}  # they look at the model: see their own tests
TRADING = [name for name in selectors if name not in APART]
AT_ONCE = ("uniform", "segments", "random_widths", "isomorphic")  # they change all widths at once


class Coupled:
    """Sum of a * b over neighbours, and of a: what layers in a row cost."""

    unit = "units"

    def __init__(self, pairs: dict[tuple[str, str], float], single: dict[str, float]) -> None:
        self.pairs, self.single = pairs, single

    def __call__(self, sizes):
        wide = {name: torch.as_tensor(size, dtype=torch.float64) for name, size in sizes.items()}
        total = sum(price * wide[a] * wide[b] for (a, b), price in self.pairs.items())
        return total + sum(price * wide[a] for a, price in self.single.items())

    many = __call__


class Unmodelled(SimpleNamespace):
    """Axes that belong to no model, all free."""

    free: dict[str, Axis]
    choices: dict[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> Axis:
        return self.free[name]


def space_of(axes: list[Axis], minimum: dict[str, int] | None = None, **choices: tuple[str, ...]) -> SearchSpace:
    """A search space of axes that belong to no model."""
    free = {axis.name: axis for axis in axes}
    return SearchSpace("toy", Unmodelled(free=free, choices=choices), minimum or {a.name: a.divisor for a in axes})


def instance(seed: int, most: int = 5) -> tuple[Scores, Coupled, float, SearchSpace]:
    """Three to five axes of three to five widths, random prices, random scores (of both signs, or positive ones)."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    axes, scores = [], {}
    for number in range(3 + seed % (most - 2)):
        divisor = int(between(1, 5))
        size = divisor * int(between(3, 6)) + (divisor // 2) * (seed % 2)
        axes.append(Axis(f"a{number}", "channel", size, (), None, divisor))
        draw = 0.5 * torch.randn(size, generator=generator) + between(-0.5, 0.5)
        scores[f"a{number}"] = draw.abs() if seed % 3 == 0 else draw
    names = list(scores)
    pairs = {pair: between(0.1, 4) for pair in [*pairwise(names), (names[0], names[2])]}
    cost = Coupled(pairs, {name: between(0, 3) for name in names})
    space = space_of(axes)
    least, dense = (float(cost(sizes)) for sizes in (space.minimum, {a.name: a.size for a in axes}))
    return scores, cost, least + between(0.1, 0.8) * (dense - least), space


def worth(arch: Arch, scores: Scores) -> float:
    """Value of what an architecture keeps."""
    kept = values(scores)
    return float(sum(kept[name][list(units)].sum() for name, units in arch.kept.items()))


def spent(arch: Arch, cost, space: SearchSpace) -> float:
    """Cost of an architecture."""
    return float(cost(arch.sizes(space.free)))


def exhausted(scores: Scores, cost, limit: float, space: SearchSpace) -> float:
    """The most value within the limit, by trying every combination of widths."""
    problem = pose(Question(scores, cost, limit, space))
    choices = torch.tensor(list(product(*map(range, problem.counts.tolist()))))
    return float(problem.value(choices)[problem.costs(choices) <= limit].max())


def random_scores(space: SearchSpace) -> dict[str, Tensor]:
    """Scores of a level per axis and a deviation per unit, as gates have after training."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: 0.3 * torch.randn(axis.size, generator=generator) + 0.5 * torch.randn(1, generator=generator)
        for name, axis in space.free.items()
    }


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    """resnet18 in eighths: eight widths per axis."""
    path = tmp_path_factory.mktemp("spaces") / "eighths.yaml"
    path.write_text("rules:\n  - {kinds: [channel], divisor: 64, widths: 8, minimum: 0.1}\n")
    return SearchSpace.read(path, traced("resnet18").axes)


@pytest.mark.parametrize("select", [optimal, program])
def test_the_choice_is_that_of_trying_everything(select) -> None:
    for seed in range(12):
        task = instance(seed)
        assert worth(ask(select, *task), task[0]) == pytest.approx(exhausted(*task), rel=1e-9)


def test_never_worth_less_than_one_threshold() -> None:
    gains = []
    for seed in range(20):
        task = instance(seed, most=7)
        gains.append(worth(ask(optimal, *task), task[0]) / worth(ask(ranked, *task), task[0]))
    assert min(gains) >= 1 - 1e-12
    assert sum(gain > 1.01 for gain in gains) >= 5


@pytest.mark.parametrize(("kind", "share"), few([(Macs, 0.25), (Macs, 0.5), (Params, 0.3)], [(Params, 0.3)]))
def test_the_gap_to_the_exact_program_on_a_real_network(kind, share: float) -> None:
    space = SearchSpace.read("channels", traced("resnet18").axes)
    cost, scores = kind(space.axes), random_scores(space)
    limit = share * float(cost({}))
    found, exact = (ask(select, scores, cost, limit, space) for select in (optimal, program))
    assert worth(found, scores) >= (1 - 1e-3) * worth(exact, scores)
    assert worth(exact, scores) >= (1 - 1e-5) * worth(found, scores)
    assert spent(found, cost, space) <= limit >= spent(exact, cost, space)


def test_more_budget_never_lowers_the_value(resnet: SearchSpace) -> None:
    cost, scores = Macs(resnet.axes), random_scores(resnet)
    tasks = [(scores, cost, resnet, float(cost({})))]
    for seed in range(4):
        scores, cost, _, space = instance(seed)
        tasks.append((scores, cost, space, float(cost({n: a.size for n, a in space.free.items()}))))
    for scores, cost, space, dense in tasks:
        ladder = [
            worth(ask(optimal, scores, cost, share * dense, space), scores) for share in (0.3, 0.4, 0.41, 0.7, 1.0)
        ]
        assert ladder == sorted(ladder)
        assert ladder[-1] == pytest.approx(worth(Arch.dense(space.free), scores), rel=1e-12)


@pytest.mark.parametrize("name", TRADING)
def test_every_selector_keeps_to_limit_floor_and_divisor(resnet: SearchSpace, name: str) -> None:
    cost, scores = Macs(resnet.axes), random_scores(resnet)
    for share in (0.2, 0.6):
        limit = share * float(cost({}))
        arch = ask(selectors[name], scores, cost, limit, resnet)
        least = 0.7 if name in AT_ONCE else 0.8
        assert least * limit < spent(arch, cost, resnet) <= limit
        assert arch == ask(selectors[name], scores, cost, limit, resnet)
        for axis in resnet.free.values():
            kept = arch.kept[axis.name]
            assert len(kept) in widths(axis, resnet.minimum[axis.name])
            assert float(scores[axis.name][list(kept)].min()) >= float(scores[axis.name].topk(len(kept)).values.min())


@pytest.mark.parametrize("name", ["uniform", "ranked", "price", "optimal", "milp"])
def test_a_limit_that_all_are_within_closes_nothing_where_the_whole_is_no_multiple_either(name: str) -> None:
    axes = [Axis("a", "channel", 18, (), divisor=4), Axis("b", "channel", 58, (), divisor=4)]
    cost, space = Coupled({("a", "b"): 1.0}, {"a": 1.0, "b": 1.0}), space_of(axes)
    limit = float(cost({axis.name: axis.size for axis in axes}))
    arch = ask(selectors[name], {axis.name: torch.rand(axis.size) for axis in axes}, cost, limit, space)
    assert arch == Arch.dense(space.free)


@pytest.mark.parametrize("name", TRADING)
def test_a_limit_that_cannot_be_met_is_an_error_with_the_closest_figure(resnet: SearchSpace, name: str) -> None:
    cost = Macs(resnet.axes)
    least = float(cost(resnet.minimum))
    with pytest.raises(BudgetError, match=rf"is within .*MACs: .* takes {re.escape(f'{least:.4g}')}"):
        ask(selectors[name], random_scores(resnet), cost, 0.99 * least, resnet)
    assert spent(ask(selectors[name], random_scores(resnet), cost, least, resnet), cost, resnet) == least


@pytest.mark.parametrize("name", ["ranked", "isomorphic", "price"])
def test_units_that_score_alike_do_not_all_go_at_once(resnet: SearchSpace, name: str) -> None:
    cost = Macs(resnet.axes)
    dense = float(cost({}))
    for scores in ({n: torch.full((a.size,), 0.5) for n, a in resnet.free.items()}, half_zero(resnet)):
        for share in (0.3, 0.5, 0.8):
            arch = ask(selectors[name], scores, cost, share * dense, resnet)
            assert 0.9 * share * dense < spent(arch, cost, resnet) <= share * dense
            assert arch == ask(selectors[name], scores, cost, share * dense, resnet)
    alike = {n: torch.zeros(a.size) for n, a in resnet.free.items()}
    kept = ask(selectors[name], alike, cost, 0.4 * dense, resnet).kept
    shares = [len(units) / resnet.free[n].size for n, units in kept.items()]
    assert max(shares) - min(shares) <= 1 / 8 + 1e-9, "a step of an axis"
    assert all(units == tuple(range(len(units))) for units in kept.values()), "the first ones stay"


def half_zero(space: SearchSpace) -> dict[str, Tensor]:
    """Scores of which most are zero, as those of norms whose scales are gone."""
    return {name: score.clamp(min=0.4) - 0.4 for name, score in random_scores(space).items()}


def test_what_gates_have_closed_alike_is_not_brought_back_to_use_up_a_limit(resnet: SearchSpace) -> None:
    cost = Macs(resnet.axes)
    masks = {name: 2.0 * (torch.arange(axis.size) % 16 < 8) - 1 for name, axis in resnet.free.items()}
    own = best_units(masks, above(masks, 0.0, resnet))
    used = spent(own, cost, resnet)
    assert ask(ranked, masks, cost, 1.7 * used, resnet) == own
    less = ask(ranked, masks, cost, 0.7 * used, resnet)
    assert 0.9 * 0.7 * used < spent(less, cost, resnet) <= 0.7 * used
    assert all(set(units) <= set(own.kept[name]) for name, units in less.kept.items())


def test_of_scores_that_differ_one_threshold_decides(resnet: SearchSpace) -> None:
    cost, scores = Macs(resnet.axes), random_scores(resnet)
    limit = 0.5 * float(cost({}))
    thresholds = torch.cat(list(scores.values())).unique().tolist()
    within = [each for each in thresholds[::16] if float(cost(above(scores, each, resnet))) <= limit]
    sizes = above(scores, within[0], resnet)
    found = ask(ranked, scores, cost, limit, resnet)
    assert all(len(found.kept[name]) >= size for name, size in sizes.items())
    lowest = next(each for each in thresholds if float(cost(above(scores, each, resnet))) <= limit)
    assert found == best_units(scores, above(scores, lowest, resnet))


def test_a_cheap_layer_does_not_collapse_because_its_scores_are_a_little_lower() -> None:
    axes = [Axis(name, "channel", 16, ()) for name in ("cheap", "costly")]
    scores = {"cheap": torch.full((16,), 0.4), "costly": torch.linspace(0.5, 0.6, 16)}
    cost = Coupled({}, {"cheap": 1.0, "costly": 100.0})
    task = scores, cost, 16 + 12 * 100.0, space_of(axes)
    assert ask(ranked, *task).sizes(task[3].free) == {"cheap": 1, "costly": 12}
    for select in (optimal, program):
        assert ask(select, *task).sizes(task[3].free) == {"cheap": 16, "costly": 12}


def test_several_limits_are_met_at_once(resnet: SearchSpace) -> None:
    scores = random_scores(resnet)
    macs, params = Macs(resnet.axes), Params(resnet.axes)
    both = Limits([Budget("0.5x", macs), Budget("0.3x", params)])
    for select in (price, optimal):
        arch = ask(select, scores, both, 1.0, resnet)
        assert spent(arch, macs, resnet) <= 0.5 * float(macs({}))
        assert spent(arch, params, resnet) <= 0.3 * float(params({}))
    for cost, share in ((macs, 0.5), (params, 0.3)):
        assert worth(arch, scores) <= worth(ask(optimal, scores, cost, share * float(cost({})), resnet), scores)
    tight = Limits([Budget("0.9x", macs), Budget("1k", params)])
    with pytest.raises(BudgetError, match=r"parameters is .*x the limit of 1000 parameters\)"):
        ask(optimal, scores, tight, 1.0, resnet)
    with pytest.raises(RecipeError, match='selector "milp" cannot take it; choose the selector "optimal"'):
        ask(program, scores, both, 1.0, resnet)


class Hollow(Coupled):
    """The least width is slow, as on devices with fast kernels for some widths only."""

    def __call__(self, sizes):
        total = super().__call__(sizes)
        return total + 100.0 * (torch.as_tensor(sizes["a"]) == 8)

    many = __call__


def test_a_limit_that_the_smallest_architecture_misses_may_still_be_met() -> None:
    axes = [Axis("a", "channel", 32, (), None, 8), Axis("b", "channel", 32, (), None, 8)]
    scores = {"a": torch.rand(32), "b": torch.rand(32)}
    task = scores, Hollow({("a", "b"): 0.01}, {"a": 1.0, "b": 1.0}), 40.0, space_of(axes)
    with pytest.raises(BudgetError):
        ask(ranked, *task)
    assert worth(ask(optimal, *task), scores) == pytest.approx(exhausted(*task), rel=1e-9)


class Planted(Predictor):
    """A predictor in float32 that knows the truth."""

    def predict(self, shares: Tensor) -> Tensor:
        return self.dense_ms * (0.2 + 0.8 * (shares[:, 1:] * shares[:, :-1]).mean(1))

    def fit(self, shares: Tensor, ms: Tensor, *, generator: torch.Generator) -> None:
        """There is nothing to learn."""


def test_a_predictor_is_met_as_it_answers_one_by_one() -> None:
    axes = [Axis(f"a{number}", "channel", 80, (), None, 8) for number in range(12)]
    space = space_of(axes)
    predictor = Planted({axis.name: 80 for axis in axes}, 10.0)
    scores = random_scores(space)
    for share in (0.6, 0.8):
        limit = float(predictor(space.minimum)) * (1 - share) + 10.0 * share
        arch = ask(optimal, scores, predictor, limit, space)
        assert 0.98 * limit < spent(arch, predictor, space) <= limit
        assert worth(arch, scores) >= worth(ask(ranked, scores, predictor, limit, space), scores)


def test_values_are_scores_where_none_is_negative_and_the_surprise_of_closing_otherwise() -> None:
    taylor = {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([1.0])}
    assert {name: value.tolist() for name, value in values(taylor).items()} == {"a": [0.0, 3.0], "b": [1.0]}
    gates = {"a": torch.tensor([-50.0, -1.0, 0.0]), "b": torch.tensor([1.0, 53.0])}
    worths = torch.cat(list(values(gates).values()))
    assert bool((worths >= 0).all())
    assert bool((worths.diff() > 0).all())
    assert float(worths[-1]) == pytest.approx(53.0, rel=0.05)
    logits = {"a": torch.tensor([-1.0, 1.0, 0.7, -1.3])}  # of mean magnitude one
    closed = 1 - torch.sigmoid(logits["a"].double())
    assert torch.allclose(values(logits)["a"], -closed.log(), rtol=1e-6)
    scaled = values({name: 7 * score for name, score in gates.items()})
    assert torch.allclose(torch.cat(list(scaled.values())), 7 * worths)
    with pytest.raises(DivergedError, match="axis b"):
        values({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})


class Volume(Coupled):
    """A product of three."""

    def __call__(self, sizes):
        return torch.as_tensor(sizes["a"] * sizes["b"] * sizes["c"])

    many = __call__


def test_a_program_that_cannot_be_written_or_does_not_end_names_the_other_selector(resnet: SearchSpace) -> None:
    axes = [Axis(name, "channel", 8, ()) for name in "abc"]
    with pytest.raises(RecipeError, match=r'is not a sum over pairs of axes .* "optimal"'):
        ask(program, {name: torch.rand(8) for name in "abc"}, Volume({}, {}), 200.0, space_of(axes))
    macs = Macs(resnet.axes)
    with pytest.raises(RecipeError, match=r"found nothing in 0.001 s .* \"optimal\""):
        ask(program, random_scores(resnet), macs, 0.5 * float(macs({})), resnet, seconds=0.001)


def test_a_program_that_is_stopped_by_the_clock_gives_the_best_it_has_found(
    resnet: SearchSpace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    macs, scores = Macs(resnet.axes), random_scores(resnet)
    exact = ask(program, scores, macs, 0.5 * float(macs({})), resnet)

    def stopped(*args: Any, **options: Any) -> Any:
        result = scipy_milp(*args, **options)
        result.status, result.mip_gap = milp.ENDED, 0.02
        return result

    monkeypatch.setattr(milp, "milp", stopped)
    assert ask(program, scores, macs, 0.5 * float(macs({})), resnet) == exact
    assert "may lack 2 % of the value" in caplog.text


def shared(one: Arch, other: Arch) -> float:
    """Share of the units of one architecture that another keeps, too."""
    both = sum(len(set(units) & set(other.kept[name])) for name, units in one.kept.items())
    return both / sum(map(len, one.kept.values()))


def test_what_gates_have_decided_is_taken_where_it_fits_and_changed_little_where_it_nearly_does(
    resnet: SearchSpace,
) -> None:
    cost, scores = Macs(resnet.axes), random_scores(resnet)
    own = best_units(scores, above(scores, 0.0, resnet))
    used = spent(own, cost, resnet)
    assert 0.05 * float(cost({})) < used < 0.95 * float(cost({}))
    assert ask(price, scores, cost, used, resnet) == ask(price, scores, cost, 1.04 * used, resnet) == own
    cut, extended = (ask(price, scores, cost, share * used, resnet) for share in (0.9, 1.15))
    assert shared(own, cut) > 0.9
    assert shared(extended, own) > 0.9


def test_kinds_of_axes_have_scales_of_their_own() -> None:
    axes = [Axis("a", "channel", 8, ()), Axis("b", "depth", 1, ()), Axis("c", "depth", 1, ())]
    space = space_of(axes, {"a": 1, "b": 0, "c": 0})
    cost = Coupled({}, {"a": 1.0, "b": 8.0, "c": 8.0})
    scores = {"a": torch.linspace(-1, 1, 8), "b": torch.tensor([1.0]), "c": torch.tensor([3.0])}
    sizes = [ask(price, scores, cost, limit, space).sizes(space.free) for limit in (20.0, 19.0, 11.5)]
    assert sizes[0] == {"a": 4, "b": 1, "c": 1}  # its own
    assert sizes[1] == {"a": 3, "b": 1, "c": 1}
    assert sizes[2] == {"a": 3, "b": 0, "c": 1}
    louder = {**scores, "b": 100 * scores["b"], "c": 100 * scores["c"]}
    assert [ask(price, louder, cost, limit, space).sizes(space.free) for limit in (20.0, 19.0, 11.5)] == sizes


def test_of_candidates_that_score_alike_the_cheaper_one_stays() -> None:
    axes = [Axis("cheap", "operation", 1, ()), Axis("dear", "operation", 1, ()), Axis("a", "channel", 8, ())]
    space = space_of(axes, {"a": 1, "cheap": 0, "dear": 0}, choice=("cheap", "dear"))
    free = space.free
    cost = Coupled({("cheap", "a"): 1.0, ("dear", "a"): 4.0}, {})
    alike = {"cheap": torch.tensor([1.0]), "dear": torch.tensor([1.01]), "a": torch.linspace(-0.1, 1, 8)}
    assert ask(price, alike, cost, 7.2, space).sizes(free) == {"cheap": 1, "dear": 0, "a": 7}
    better = {**alike, "dear": torch.tensor([1.0]), "cheap": torch.tensor([-1.0])}
    assert ask(price, better, cost, 28.0, space).sizes(free) == {"cheap": 0, "dear": 1, "a": 7}
    assert ask(price, better, cost, 3.9, space).sizes(free)["cheap"] == 1


def test_what_one_price_leaves_over_goes_to_the_best_units_that_fit() -> None:
    axes = [Axis("a", "channel", 8, ()), Axis("b", "channel", 8, ())]
    cost = Coupled({}, {"a": 1.0, "b": 50.0})
    scores = {"a": torch.linspace(-3, -2, 8), "b": torch.tensor([-1.9] * 4 + [1.0] * 4)}
    task = scores, cost, 240.0, space_of(axes)
    assert ask(ranked, *task).sizes(task[3].free) == {"a": 1, "b": 4}
    assert ask(price, *task).sizes(task[3].free) == {"a": 8, "b": 4}


def test_scores_choose_their_selector() -> None:
    assert SearchSettings().fitting_selector.name == "price"
    assert SearchSettings(criterion="taylor").fitting_selector.name == "optimal"
    assert SearchSettings(criterion="taylor", selector="ranked").fitting_selector.name == "ranked"


def test_scores_that_are_no_numbers_are_an_error(resnet: SearchSpace) -> None:
    scores = random_scores(resnet) | {"conv1": torch.full((64,), torch.nan)}
    with pytest.raises(DivergedError, match="axis conv1"):
        ask(price, scores, Macs(resnet.axes), 1e9, resnet)


def test_fixed_widths_are_taken_as_they_are_told() -> None:
    axes = [Axis("a", "channel", 6, (), None, 1), Axis("b", "channel", 4, (), None, 1)]
    scores = {"a": torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2, 0.3]), "b": torch.arange(4.0)}
    question = Question(scores, Coupled({}, {"a": 1.0, "b": 1.0}), 3.0, space_of(axes))
    assert selectors["fixed_widths"](question, widths={"a": 2}).arch.kept == {"a": (1, 3), "b": (0, 1, 2, 3)}
    for wrong, message in (({"c": 1}, "no axis 'c'"), ({"a": 7}, "1 to 6 units"), ({"a": 0}, "1 to 6 units")):
        with pytest.raises(SpaceError, match=message):
            selectors["fixed_widths"](question, widths=wrong)


def test_random_widths_are_those_of_the_seed_and_as_wide_as_the_limit_allows() -> None:
    net = traced("test_resnet")
    space, cost = SearchSpace.read("channels", net.axes), Macs(net.axes)
    scores = {axis.name: torch.rand(axis.size) for axis in space.free.values()}
    question = Question(scores, cost, 0.5 * float(cost({})), space)
    first, other = (selectors["random_widths"](replace(question, seed=seed)).arch.sizes(space.free) for seed in (0, 1))
    assert first != other
    assert first == selectors["random_widths"](question).arch.sizes(space.free)
    assert len({round(size / space.free[name].size, 1) for name, size in first.items()}) > 2
    assert all(0.4 * float(cost({})) < question.spent(sizes) <= question.limit for sizes in (first, other))


def test_layers_built_alike_are_ranked_together_and_all_such_groups_keep_one_share() -> None:
    def axis(name: str, size: int, through: str) -> Axis:
        return Axis(name, "channel", size, (Member(f"{through}.weight", 0, "write"),), None, 1)

    axes = [axis("a", 4, "0"), axis("b", 4, "2"), axis("c", 8, "1")]
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(4, 4), nn.Conv2d(4, 4, 1))
    scores = {"a": torch.tensor([9.0, 8, 7, 6]), "b": torch.arange(4.0), "c": 100 * torch.arange(1.0, 9)}
    question = Question(scores, Coupled({}, dict.fromkeys("abc", 1.0)), 9.0, space_of(axes))
    question = replace(question, gated=SimpleNamespace(backbone=model))
    sizes = selectors["isomorphic"](question).arch.sizes(question.space.free)
    assert sizes == {"a": 4, "b": 1, "c": 4}  # half of c, and of a and b together the best four; one is the least of b
    assert [names for _, names in groups_of(question)] == [["a", "b"], ["c"]]
    alone = ranked(question).arch.sizes(question.space.free)
    assert alone == {"a": 1, "b": 1, "c": 7}  # one ranking over all would have spared the layer of large scores
