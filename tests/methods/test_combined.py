"""COPS: the relaxed program beside a linear program and beside trying everything, and what the selector makes of it."""

from itertools import product

import pytest
import torch
from asked import ask
from scipy.optimize import linprog
from test_selectors import Coupled, space_of
from torch import Tensor

from nas_prune.base.axis import Axis
from nas_prune.base.errors import RecipeError
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.combine import combined, marginal_costs
from nas_prune.methods.selectors.ranked import ranked
from nas_prune.methods.selectors.solver.relaxed import Relaxed, solve


def drawn(
    seed: int, controls: int, items: int = 60, share: float = 0.8, *, alike: bool = False, of: float = 0.25
) -> Relaxed:
    """Random scores that sum to one, and costs: of all items the same, or not."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1 + controls, items, generator=generator, dtype=torch.float64) ** 3
    costs = torch.ones(items) if alike else 0.2 + torch.rand(items, generator=generator)
    shares = torch.full((controls,), share, dtype=torch.float64)
    return Relaxed(scores / scores.sum(1, keepdim=True), costs.double(), of * float(costs.sum()), shares)


def most(problem: Relaxed, score: int = 0, least: Tensor | None = None) -> float:
    """What a linear program keeps of a score at most, under these controls."""
    rows, bounds = [problem.costs.tolist()], [problem.limit]
    if least is not None:
        rows += (-problem.scores[1:]).tolist()
        bounds += (-least).tolist()
    return -linprog((-problem.scores[score]).numpy(), A_ub=rows, b_ub=bounds, bounds=(0, 1)).fun


@pytest.mark.parametrize("controls", [0, 1, 2, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_the_relaxed_program_is_solved(controls: int, *, alike: bool) -> None:
    for seed in range(6):
        problem = drawn(seed, controls, share=0.5 if controls > 1 else 0.9, alike=alike)
        least = torch.tensor([0.5 if controls > 1 else 0.9] * controls) * torch.tensor(
            [most(problem, number) for number in range(1, 1 + controls)], dtype=torch.float64
        )
        torch.testing.assert_close(problem.least, least.double(), rtol=1e-6, atol=0)
        found = solve(problem)
        assert found is not None
        weights, mask = found
        assert bool(((mask >= 0) & (mask <= 1)).all())
        assert float(problem.costs @ mask) <= problem.limit * (1 + 1e-9)
        assert bool((problem.scores[1:] @ mask >= least * (1 - 1e-6)).all())
        assert float(problem.scores[0] @ mask) == pytest.approx(most(problem, 0, least), rel=1e-6)
        assert int(((mask > 1e-9) & (mask < 1 - 1e-9)).sum()) <= controls + 1
        density = weights @ problem.scores / problem.costs
        assert float(weights.sum()) == pytest.approx(1)
        assert float(density[mask > 1 - 1e-9].min()) >= float(density[mask < 1e-9].max()) - 1e-12


def test_rounding_costs_no_more_than_what_is_split() -> None:
    for seed in range(5):
        problem = drawn(seed, 1, items=12, share=0.7, of=0.5)
        masks = torch.tensor(list(product((0.0, 1.0), repeat=12)), dtype=torch.float64)
        fits = (masks @ problem.costs <= problem.limit) & (masks @ problem.scores[1] >= float(problem.least))
        best = float((masks @ problem.scores[0])[fits].max())
        _, mask = solve(problem)  # type: ignore[misc]
        whole = (mask > 1 - 1e-9).double()
        split = problem.scores @ ((mask > 1e-9) & (whole == 0)).double()
        assert best <= float(problem.scores[0] @ mask) + 1e-12
        assert float(problem.scores[0] @ whole) >= best - float(split[0]) - 1e-12
        assert float(problem.scores[1] @ whole) >= float(problem.least - split[1]) - 1e-12


def test_the_share_of_a_control_goes_from_the_one_ranking_to_the_other() -> None:
    free, held = (drawn(3, 1, share=share, alike=True) for share in (0.0, 1.0))
    for problem, number in ((free, 0), (held, 1)):
        _, mask = solve(problem)  # type: ignore[misc]
        assert set(mask.nonzero().flatten().tolist()) == set(problem.scores[number].topk(15).indices.tolist())
    kept, aims = [], []
    for share in torch.linspace(0, 1, 21).tolist():
        problem = drawn(3, 1, share=share, alike=True)
        _, mask = solve(problem)  # type: ignore[misc]
        kept.append(float(problem.scores[1] @ mask))
        aims.append(float(problem.scores[0] @ mask))
    assert kept == pytest.approx(sorted(kept), rel=1e-9)
    assert aims == pytest.approx(sorted(aims, reverse=True), rel=1e-9)
    same = drawn(4, 1, share=1.0)
    same = Relaxed(same.scores[[0, 0]], same.costs, same.limit, same.shares)
    weights, mask = solve(same)  # type: ignore[misc]
    assert weights.tolist() == [1.0, 0.0]
    assert torch.equal(mask, same.filled(same.scores[0]))


def test_what_cannot_be_kept_together_is_not_solved() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    assert solve(Relaxed(eye, torch.ones(3).double(), 1.0, torch.ones(2).double())) is None


def question(limit: float = 16.0) -> Question:
    """Two axes of twelve units; a linear cost, the second axis three times as dear; a score and two others."""
    generator = torch.Generator().manual_seed(2)
    axes = [Axis(name, "channel", 12, ()) for name in ("a", "b")]
    scores = [{n: torch.rand(12, generator=generator) ** 2 for n in ("a", "b")} for _ in range(3)]
    further = {"snip": {n: 1e-6 * each for n, each in scores[1].items()}, "synflow": scores[2]}
    further["synflow"] = {n: 1e20 * each - 1e19 for n, each in further["synflow"].items()}
    return Question(scores[0], Coupled({}, {"a": 1.0, "b": 3.0}), limit, space_of(axes), further=further)


def value(asked: Question, arch, score: str) -> float:
    """What an architecture keeps of a score, by hand, normalised."""
    scores = asked.scores if score == "" else asked.further[score]
    least = min(0.0, *(float(each.min()) for each in scores.values()))
    total = sum(float((each.double() - least).sum()) for each in scores.values())
    return sum(float((scores[n].double()[list(units)] - least).sum()) for n, units in arch.kept.items()) / total


def test_a_control_is_kept_to_a_unit_and_no_choice_that_keeps_it_is_worth_more() -> None:
    asked = question()
    free, held = (combined(asked, keep={"snip": share}).arch for share in (0.0, 0.95))
    alone = combined(asked.scored(asked.further["snip"]), keep={}).arch
    unit = max(float(each.max()) for each in asked.further["snip"].values()) / (
        sum(float(each.sum()) for each in asked.further["snip"].values())
    )
    assert value(asked, free, "snip") < 0.9 * value(asked, alone, "snip")
    assert value(asked, held, "snip") >= 0.95 * value(asked, alone, "snip") - 2 * unit
    assert value(asked, held, "") < value(asked, free, "")
    assert asked.spent(held.sizes(asked.space.free)) <= asked.limit
    both = combined(asked, keep=0.7).arch
    assert all(value(asked, both, name) >= 0.6 * value(asked, alone, name) for name in asked.further)


def test_without_controls_it_is_one_threshold_on_what_a_unit_is_worth_per_cost() -> None:
    asked = question()
    dense = {name: axis.size for name, axis in asked.space.free.items()}
    assert {name: float(each) for name, each in marginal_costs(asked, dense).items()} == {"a": 1.0, "b": 3.0}
    density = {"a": asked.scores["a"], "b": asked.scores["b"] / 3}
    assert combined(asked, keep={}).arch == ranked(asked.scored(density)).arch
    assert ask(combined, asked.scores, asked.cost, asked.limit, asked.space) == combined(asked, keep={}).arch
    scaled = {name: {n: 8 * each for n, each in scores.items()} for name, scores in asked.further.items()}
    again = Question(asked.scores, asked.cost, asked.limit, asked.space, further=scaled)
    assert combined(again).arch == combined(asked).arch


def test_a_score_that_is_missing_and_shares_that_are_too_much_are_errors() -> None:
    asked = question()
    with pytest.raises(RecipeError, match=r"called grasp; add it to search\.further"):
        combined(asked, keep={"grasp": 0.5})
    with pytest.raises(RecipeError, match="keeps these shares of snip, synflow together; lower `keep`"):
        combined(asked, keep=1.0)
