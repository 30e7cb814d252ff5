"""Laws of Shapley values: exact against sampled, efficiency, dummies, symmetry, intervals, and fewer evaluations."""

import datetime
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from scipy.stats import kendalltau
from torch import Tensor

from nas_prune.base.errors import DivergedError, SpaceError
from nas_prune.methods.shapley import (
    EstimatePlan,
    Game,
    Processes,
    ascended,
    estimate,
    exact,
    fitted,
    permutations,
    standardised,
)
from nas_prune.methods.shapley.surrogate import Kernel, tuned
from nas_prune.methods.shapley.walks import pairs

CHOICES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of random walks."""
    return torch.Generator().manual_seed(seed)


class Planted:
    """A supernet in a nutshell: as good as the product of its choices, each of which saturates in its candidates."""

    def __init__(self) -> None:
        losers = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)[torch.randperm(12, generator=seeded(8))]
        self.quality = losers.view(4, 3).clone()
        self.best = [0, 2, 1, 2]
        self.quality[range(4), self.best] = torch.tensor([0.9, 1.0, 1.1, 1.2], dtype=torch.float64)

    def __call__(self, coalition: Tensor) -> float:
        strength = (coalition.double().view(4, 3) * self.quality).sum(1)
        return float(0.1 + 0.9 * (1 - 0.75 * torch.exp(-2 * strength)).prod())


def table(players: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """All coalitions (2^n n) of a game without any structure, and their values."""
    every = ((torch.arange(2**players)[:, None] >> torch.arange(players)) & 1).bool()
    return every, torch.randn(2**players, generator=seeded(seed), dtype=torch.float64)


def lookup(values: Tensor, coalition: Tensor) -> float:
    """The value of one coalition in such a table."""
    return float(values[int((coalition.long() << torch.arange(len(coalition))).sum())])


def test_exact_values_are_the_mean_over_all_orders() -> None:
    _, values = table(4)
    game = Game(lambda coalition: lookup(values, coalition), 4)
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(order.tolist())) == 4 for order in orders]]
    assert len(orders) == 24
    assert torch.allclose(permutations(game, orders).values, exact(game, 4), rtol=0, atol=1e-12)
    assert game.evaluations == 16


def test_too_many_players_for_exact_values() -> None:
    with pytest.raises(SpaceError, match="estimate them instead"):
        exact(lambda _: 0.0, 17)


def test_sampling_comes_to_the_exact_values() -> None:
    weights = torch.rand(6, generator=seeded(1), dtype=torch.float64)
    game = Game(lambda coalition: float((coalition * weights).sum().sqrt()), 6)
    sampled = permutations(game, pairs(1000, 6, seeded()))
    assert float((sampled.values - exact(game, 6)).abs().max()) < 0.005
    assert game.evaluations == 64


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_every_walk_adds_up_to_the_whole(tolerance: float) -> None:
    game = Game(Planted(), 12)
    marginals = permutations(game, pairs(10, 12, seeded()), tolerance=tolerance).marginals
    whole = game(torch.ones(12, dtype=torch.bool)) - game(torch.zeros(12, dtype=torch.bool))
    assert float((marginals.sum(1) - whole).abs().max()) < 1e-12
    found = estimate(game, EstimatePlan(evaluations=300, tolerance=tolerance), seeded())
    assert float((found.samples.sum(1) - whole).abs().max()) < 1e-9


def test_a_tolerance_saves_evaluations() -> None:
    full, short = Game(Planted(), 12), Game(Planted(), 12)
    orders = pairs(20, 12, seeded())
    there, here = permutations(full, orders).values, permutations(short, orders, tolerance=0.1).values
    assert short.evaluations < 0.9 * full.evaluations
    assert float((there - here).abs().max()) < 0.1 * float(there.sum())


def test_the_public_code_loses_what_it_does_not_reach() -> None:
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    game = Game(lambda coalition: float((coalition * weights).sum()), 6)
    orders = pairs(200, 6, seeded())
    paper, ours = permutations(game, orders, paper_mode=True), permutations(game, orders)
    assert float(ours.values.sum()) == pytest.approx(21)
    assert torch.allclose(ours.values, weights)
    assert float(paper.marginals.mean(0).sum()) < 0.75 * 21  # the walk ends at half of the whole
    assert int(paper.reached.max()) < 400
    spread = paper.marginals.std(0, correction=0)
    assert torch.allclose(paper.values, paper.marginals.mean(0) - spread)


def test_who_adds_nothing_is_worth_nothing_and_equals_are_equal() -> None:
    def value(coalition: Tensor) -> float:
        a, b, c, d = coalition[:4].double().tolist()  # players 4 to 11 are dummies
        return (a + b) ** 2 + 3 * c * d + c * a * b * d

    found = estimate(Game(value, 12), EstimatePlan(evaluations=400), seeded())
    assert float(found.values[4:].abs().max()) < 0.05
    assert bool((found.values[4:].abs() <= found.half_width[4:] + 0.02).all())
    gap = found.samples[:, :1] - found.samples[:, 1:2]
    assert abs(float(gap.mean())) <= float(gap.std()) * 3 / len(gap) ** 0.5 + 1e-9
    plain = permutations(Game(value, 12), pairs(10, 12, seeded()))
    assert float(plain.values[4:].abs().max()) == 0


def test_reversed_orders_are_exact_up_to_order_two() -> None:
    quadratic = torch.randn(9, 9, generator=seeded(), dtype=torch.float64)
    game = Game(lambda coalition: float(coalition.double() @ quadratic @ coalition.double()), 9)
    assert torch.allclose(permutations(game, pairs(1, 9, seeded())).values, exact(game, 9), rtol=0, atol=1e-12)


@pytest.mark.parametrize("choices", [(), ((0, 1, 2), (4, 5))])
def test_the_surrogate_knows_its_own_shapley_values(choices: tuple[tuple[int, ...], ...]) -> None:
    every, values = table(7)
    members = torch.zeros(7, len(choices), dtype=torch.float64)
    for number, choice in enumerate(choices):
        members[list(choice), number] = 1
    seen = torch.randperm(128, generator=seeded())[:40]
    surrogate = fitted(Kernel(0.7, 0.4, members), every[seen], values[seen])
    assert torch.allclose(surrogate(every[seen]), values[seen], rtol=0, atol=1e-4)
    by_hand = exact(lambda coalition: float(surrogate(coalition[None])), 7)
    assert torch.allclose(surrogate.shapley(), by_hand, rtol=0, atol=1e-9)


def test_the_likeliest_kernel_sees_that_an_empty_choice_is_another_regime() -> None:
    every, _ = table(9)
    noise = torch.randn(9, generator=seeded(), dtype=torch.float64)
    choices = ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    alive = torch.stack([every[:, list(choice)].any(1) for choice in choices], 1)
    values = alive.all(1) * (5 + (every.double() @ noise).tanh())
    assert tuned(every, values, choices).rho < 1
    assert tuned(every, (every.double() @ noise).tanh(), choices).rho == 1


def plainly(evaluations: int, seed: int) -> Tensor:
    """What plain permutations find with so many evaluations of the planted game."""
    game, orders = Game(Planted(), 12), torch.rand(1000, 12, generator=seeded(seed)).argsort(1)
    count = next(count for count in range(1, 1000) if _met(game, orders[count - 1 : count]) >= evaluations)
    return permutations(game, orders[:count]).values


def _met(game: Game, orders: Tensor) -> int:
    permutations(game, orders)
    return game.evaluations


def test_the_estimate_needs_a_fifth_of_the_evaluations_of_plain_permutations() -> None:
    truth = exact(Planted(), 12)
    ours = [estimate(Game(Planted(), 12, CHOICES), EstimatePlan(evaluations=400), seeded(seed)) for seed in range(3)]
    assert max(found.evaluations for found in ours) <= 400
    assert sum(kendalltau(found.values, truth)[0] for found in ours) / 3 >= 0.95
    plain = [plainly(5 * 400, seed) for seed in range(3)]
    assert sum((found.values - truth).square().sum() for found in ours) < sum((p - truth).square().sum() for p in plain)


def test_the_best_of_each_choice_is_found_and_the_estimate_stops() -> None:
    game = Game(Planted(), 12, CHOICES)
    found = estimate(game, EstimatePlan(evaluations=1000, until="choices"), seeded())
    assert found.settled
    assert game.evaluations == found.evaluations < 700
    assert [int(found.values[list(choice)].argmax()) for choice in CHOICES] == Planted().best
    most = estimate(Game(Planted(), 12, CHOICES), EstimatePlan(evaluations=400), seeded())  # no ranking asked for
    assert not most.settled
    assert 350 < most.evaluations <= 400


def test_the_top_players_are_found_and_the_estimate_stops() -> None:
    truth = exact(Planted(), 12)
    found = estimate(Game(Planted(), 12), EstimatePlan(evaluations=2000, until=4), seeded())
    assert found.settled
    assert found.evaluations < 1000
    assert set(found.values.topk(4).indices.tolist()) == set(truth.topk(4).indices.tolist())


def test_the_intervals_hold_the_exact_values() -> None:
    truth = exact(Planted(), 12)
    found = [estimate(Game(Planted(), 12), EstimatePlan(evaluations=250), seeded(seed)) for seed in range(6)]
    inside = torch.stack([(each.values - truth).abs() <= each.half_width for each in found]).double()
    assert float(inside.mean()) > 0.87  # 72 intervals of 95 %


def test_few_players_are_evaluated_exactly() -> None:
    _, values = table(6)
    found = estimate(Game(lambda coalition: lookup(values, coalition), 6), EstimatePlan(evaluations=100), seeded())
    assert found.evaluations == 64
    assert torch.equal(found.values, exact(lambda coalition: lookup(values, coalition), 6))
    assert float(found.half_width.abs().max()) == 0


@pytest.mark.parametrize("players", [1, 3])
def test_few_players_with_a_guard_come_to_an_end(players: int) -> None:
    game = Game(lambda coalition: float(coalition.sum()), players, ((0, 1),) if players > 1 else ())
    found = estimate(game, EstimatePlan(evaluations=50, guard=True), seeded())
    assert found.evaluations == 2 if players == 1 else 6
    assert float(found.values.sum()) == pytest.approx(1 if players == 1 else 2)


def test_a_guarded_choice_is_never_empty() -> None:
    looked: list[Tensor] = []

    def value(coalition: Tensor) -> float:
        looked.append(coalition)
        return Planted()(coalition)

    found = estimate(Game(value, 12, CHOICES), EstimatePlan(evaluations=900, guard=True), seeded())
    assert all(bool(coalition.view(4, 3).any(1).all()) for coalition in looked)
    assert [int(found.values[list(choice)].argmax()) for choice in CHOICES] == Planted().best
    assert min(int(coalition.sum()) for coalition in looked) == 4


def test_what_is_not_a_number_is_an_error() -> None:
    game = Game(lambda coalition: float("nan") if coalition.sum() == 7 else 1.0, 12)
    with pytest.raises(DivergedError, match="not a number"):
        estimate(game, EstimatePlan(evaluations=100), seeded())


def rounds(processes: Processes) -> tuple[Game, Tensor, int]:
    """The game after an estimate that ends by its evaluations, the samples, and their evaluations."""
    game = Game(Planted(), 12)
    found = estimate(game, EstimatePlan(evaluations=250, processes=processes), seeded())
    return game, found.samples, found.evaluations


def test_two_processes_find_what_one_does() -> None:
    whole: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        whole.append(tensor)
        return tensor

    _, alone, evaluations = rounds(Processes(0, 1, noted))
    shares: list[list[Tensor]] = [[], []]
    for rank in (0, 1):

        def total(tensor: Tensor, mine: list[Tensor] = shares[rank]) -> Tensor:
            mine.append(tensor)
            return whole[len(mine) - 1]

        game, samples, _ = rounds(Processes(rank, 2, total))
        assert torch.equal(samples, alone)
        assert game.evaluations < 0.7 * evaluations
    assert len(whole) > 2
    assert all(torch.equal(one + other, both) for one, other, both in zip(*shares, whole, strict=True))


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", wait, 2, rank)

    def total(tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    torch.save(rounds(Processes(rank, 2, total))[1], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes_find_what_one_does(tmp_path: Path) -> None:
    mp.spawn(_run, (str(tmp_path),), nprocs=2)
    alone = rounds(Processes())[1]
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)


def test_the_same_generator_gives_the_same_values() -> None:
    first, second = (estimate(Game(Planted(), 12, CHOICES), EstimatePlan(evaluations=200), seeded(5)) for _ in range(2))
    assert torch.equal(first.samples, second.samples)


def test_architecture_weights_move_by_standardised_values_with_momentum() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    scores = standardised(values)
    assert torch.allclose(scores, torch.tensor([-(1.5**0.5), 0, 1.5**0.5]))
    alpha, momentum = torch.zeros(3), torch.full((3,), 0.5)
    moved, after = ascended(alpha, momentum, scores)
    assert torch.allclose(after, 0.8 * momentum + 0.2 * scores)
    assert torch.allclose(moved, 0.1 * after)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.7])
def test_equal_values_move_nothing(level: float) -> None:
    scores = standardised(torch.full((7,), level))
    alpha, _ = ascended(torch.ones(7), torch.zeros(7), scores)
    assert torch.equal(alpha, torch.ones(7))
