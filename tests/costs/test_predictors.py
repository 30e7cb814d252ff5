"""Laws of latency predictors: they learn planted latencies, never call more units faster, and are restored whole."""

from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from zoo import few

from nas_prune.base.errors import ArtifactError, RecipeError, UnknownNameError
from nas_prune.costs import (
    Budget,
    LatencyPredictor,
    MonotonePredictor,
    Predictor,
    best,
    candidates,
    predictors,
    validate,
)
from nas_prune.costs.predictors.predictor import compare
from nas_prune.derivation.trace import trace

LEARNED = {"lpnet": LatencyPredictor, "monotone": MonotonePredictor}
NAMES = {f"layer{i}": 8 * (i + 1) for i in range(40)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(count: int, axes: int, seed: int) -> Tensor:
    """Shares (b n) as a calibration draws them: one global ratio, then deviations of uneven spread per axis."""
    generator = seeded(seed)
    ratio, spread = torch.rand(2, count, 1, generator=generator)
    deviation = 0.4 * spread * torch.randn(count, axes, generator=generator)
    return 0.1 + 0.9 * (ratio + deviation).clamp(0, 1)


def planted(shares: Tensor, *, star: bool = False) -> Tensor:
    """Milliseconds (b): products of neighbours in a chain, or of every width with one of four residual ones."""
    axes = shares.shape[1]
    generator = seeded(7)
    products = (0.7 * torch.randn(axes + 1, generator=generator)).exp()
    traffic = 0.3 * torch.randn(axes, generator=generator).exp()
    one = torch.ones(len(shares), 1)
    left, right = torch.cat([one, shares], 1), torch.cat([shares, one], 1)
    other = torch.cat([one, shares[:, torch.arange(axes) % 4]], 1) if star else left
    return (right * other) @ products + shares @ traffic + 0.05 * axes


def noisy(ms: Tensor) -> Tensor:
    return ms * (1 + 0.02 * torch.randn(len(ms), generator=seeded(3)))


def made(name: str, axes: int = 40, dense_ms: float = 1.0) -> Predictor:
    return LEARNED[name](dict(list(NAMES.items())[:axes]), dense_ms)


@cache
def fitted(name: str, axes: int, *, star: bool = False) -> Predictor:
    """Fitted on 150 samples with 2 % noise."""
    torch.manual_seed(0)
    predictor = made(name, axes, float(planted(torch.ones(1, axes), star=star)))
    shares = sampled(150, axes, seed=1)
    predictor.fit(shares, noisy(planted(shares, star=star)), generator=seeded())
    return predictor


@pytest.mark.parametrize(("axes", "star"), few([(12, False), (40, False), (40, True)], [(40, True)]))
@pytest.mark.parametrize(("name", "limit"), [("monotone", 0.025), ("lpnet", 0.04)])
def test_a_planted_latency_is_learned_through_noise(name, limit, axes, star):
    predictor = fitted(name, axes, star=star)
    unseen = sampled(200, axes, seed=2)
    error = predictor.error(unseen, planted(unseen, star=star))
    assert error.mape < limit
    assert error.spearman > 0.98
    assert error.held_out == 200


@pytest.mark.parametrize(("name", "limit"), [("monotone", 0.04), ("lpnet", 0.06)])
def test_widths_more_uneven_than_the_samples_are_predicted_too(name, limit):
    uneven = 0.1 + 0.9 * torch.rand(200, 40, generator=seeded(4))
    assert fitted(name, 40).error(uneven, planted(uneven)).mape < limit


@pytest.mark.parametrize("train", [False, True])
def test_more_units_never_take_less_time(train):
    predictor = MonotonePredictor(NAMES, 5.0)
    if train:  # on timings that say the opposite: the law holds by construction, not by example
        shares = sampled(60, 40, seed=1)
        predictor.fit(shares, 5.0 / planted(shares), steps=100, generator=seeded())
    points = (0.05 + 0.95 * torch.rand(10_000, 40, generator=seeded(5))).requires_grad_()
    (slopes,) = torch.autograd.grad(predictor.predict(points).sum(), points)
    assert bool(slopes.isfinite().all())
    assert float(slopes.min()) >= 0


def test_the_monotone_predictor_follows_what_bends_upwards_and_downwards():
    shares = sampled(150, 12, seed=1)

    def bends(x: Tensor) -> Tensor:
        return 1 + x[:, :6].square().sum(1) + x[:, 6:].sqrt().sum(1)

    predictor = made("monotone", 12, float(bends(torch.ones(1, 12))))
    predictor.fit(shares, bends(shares), generator=seeded())
    unseen = sampled(100, 12, seed=2)
    assert predictor.error(unseen, bends(unseen)).mape < 0.02


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_is_the_slope(name):
    predictor = deepcopy(fitted(name, 12)).double()
    dense = zip(predictor.names, predictor.full, strict=True)
    sizes = {axis: torch.tensor(0.6 * full, dtype=torch.float64, requires_grad=True) for axis, full in dense}
    predictor(sizes).backward()
    with torch.no_grad():
        for axis, size in sizes.items():
            more, less = predictor(sizes | {axis: size + 1e-4}), predictor(sizes | {axis: size - 1e-4})
            assert float(size.grad) == pytest.approx(float(more - less) / 2e-4, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", LEARNED)
def test_a_fitted_predictor_is_frozen_and_knows_the_dense_model(name):
    predictor = fitted(name, 12)
    assert not any(parameter.requires_grad for parameter in predictor.parameters())
    assert float(predictor({})) == pytest.approx(float(predictor.dense_ms), rel=1e-5)


def test_sizes_may_be_numbers_or_tensors():
    predictor = made("monotone", 3)
    numbers = predictor.shares([{"layer0": 4, "layer2": 6.0}, {}])
    tensors = predictor.shares([{"layer0": torch.tensor(4), "layer2": torch.tensor(6.0)}])
    assert numbers.tolist() == [[0.5, 1.0, 0.25], [1.0, 1.0, 1.0]]
    assert torch.equal(tensors[0], numbers[0])


@pytest.fixture(scope="module")
def traced():
    return trace(timm.create_model("test_resnet", num_classes=10), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", LEARNED)
def test_a_fitted_predictor_is_restored_from_its_state(traced, name, tmp_path: Path):
    predictor = predictors[name](traced, 3.0, None)
    shares = sampled(40, len(predictor.names), seed=1)
    predictor.fit(shares, 3.0 * shares.mean(1), steps=20, generator=seeded())
    save_file(predictor.state_dict(), tmp_path / "predictor.safetensors")
    again = predictors[name](traced, 1.0, None)
    again.load_state_dict(load_file(tmp_path / "predictor.safetensors"))
    assert predictor.names == list(traced.free)
    assert torch.equal(again.predict(shares), predictor.predict(shares))


class Remembers(Predictor):
    """Predicts the timing of a network that it was fitted on, and the dense time for any other."""

    def fit(self, shares: Tensor, ms: Tensor, *, generator: torch.Generator) -> None:  # noqa: ARG002
        self.known = dict(zip(map(tuple, shares.tolist()), ms.tolist(), strict=True))

    def predict(self, shares: Tensor) -> Tensor:
        return torch.tensor([self.known.get(tuple(row), float(self.dense_ms)) for row in shares.tolist()])


def test_nothing_is_predicted_by_what_has_seen_it():
    shares = sampled(30, 4, seed=1)
    ms = 1 + shares.sum(1)
    error = validate(lambda: Remembers({}, 2.0), shares, ms, generator=seeded())
    assert error == compare(torch.full_like(ms, 2.0), ms)
    assert (error.held_out, error.spearman, error.kendall) == (30, 0.0, 0.0)


class Plane(Predictor):
    """A plane through a random point: cheap, and it starts from the global random state, as layers do."""

    def __init__(self, axes: int, dense_ms: float) -> None:
        super().__init__(dict(list(NAMES.items())[:axes]), dense_ms)
        self.start = torch.rand(axes)

    def fit(self, shares: Tensor, ms: Tensor, *, generator: torch.Generator) -> None:  # noqa: ARG002
        level = ms.log() - shares @ self.start
        self.slope = torch.linalg.lstsq(torch.nn.functional.pad(shares, (0, 1), value=1.0), level).solution

    def predict(self, shares: Tensor) -> Tensor:
        return (shares @ (self.start + self.slope[:-1]) + self.slope[-1]).exp()


def test_the_best_predictor_is_the_one_that_errs_least():
    shares = sampled(60, 12, seed=1)
    ms = noisy(planted(shares))
    chosen = best(
        {"known": partial(Remembers, {}, 20.0), "plane": partial(Plane, 12, 20.0)}, shares, ms, generator=seeded()
    )
    least = chosen.errors["plane"].mape
    low, high = chosen.interval
    assert chosen.name == "plane"
    assert least < chosen.errors["known"].mape
    assert 0.5 * least < low < least < high < 1.6 * least
    assert chosen.predictor.error(shares, ms).mape < least
    assert compare(chosen.predicted, ms) == chosen.errors["plane"]


def test_the_interval_covers_the_error_that_more_timings_would_show():
    shares = sampled(1000, 4, seed=1)
    ms = noisy(planted(shares)) * (1 + 0.1 * torch.rand(1000, generator=seeded(8)))
    truth = validate(partial(Plane, 4, 3.0), shares, ms, generator=seeded()).mape
    parts = zip(shares.split(50), ms.split(50), strict=True)
    intervals = [best({"plane": partial(Plane, 4, 3.0)}, *part, generator=seeded()).interval for part in parts]
    # 95 % of 20 are 19; few samples fit worse and spread wider, hence the room
    assert sum(low <= truth <= high for low, high in intervals) >= 15


def test_a_choice_depends_on_its_generator_alone():
    shares = sampled(40, 12, seed=1)
    ms = planted(shares)
    before = torch.random.get_rng_state()
    first = best({"plane": partial(Plane, 12, 20.0)}, shares, ms, generator=seeded(9))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = best({"plane": partial(Plane, 12, 20.0)}, shares, ms, generator=seeded(9))
    assert (first.errors, first.interval) == (again.errors, again.interval)
    assert torch.equal(first.predictor.start, again.predictor.start)


def fails() -> Predictor:
    raise ArtifactError("needs a table")


def test_what_cannot_be_built_is_left_out_with_its_reason():
    shares = sampled(20, 4, seed=1)
    chosen = best({"plane": partial(Plane, 4, 3.0), "tabled": fails}, shares, planted(shares), generator=seeded())
    assert (chosen.name, list(chosen.errors), chosen.left_out) == ("plane", ["plane"], {"tabled": "needs a table"})
    with pytest.raises(RecipeError, match="needs a table"):
        best({"tabled": fails}, shares, planted(shares), generator=seeded())


def test_a_registered_predictor_is_chosen_for_a_traced_model(traced):
    shares = sampled(40, len(traced.free), seed=1)
    dense_ms = float(planted(torch.ones_like(shares[:1])))
    chosen = best(candidates(traced, dense_ms, among=["lpnet"]), shares, planted(shares), folds=2, generator=seeded())
    assert chosen.predictor.names == list(traced.free)
    assert chosen.errors["lpnet"].mape < 0.05
    assert float(chosen.predictor({})) == pytest.approx(dense_ms, rel=1e-5)


@pytest.mark.parametrize("name", ["lpnet", "monotone", "additive"])
def test_a_relative_target_is_a_share_of_the_dense_model_as_it_was_measured(traced, name):
    """Samples that were all timed 5 % too slow do not move what the dense model takes."""
    shares = sampled(40, len(traced.free), seed=1)
    dense_ms = float(planted(torch.ones_like(shares[:1])))
    predictor = predictors[name](traced, dense_ms, None)
    predictor.fit(shares, 1.05 * planted(shares), generator=seeded())
    assert Budget("0.5x", predictor).limit == pytest.approx(0.5 * dense_ms, rel=1e-4)


def test_candidates_are_the_registered_predictors(traced):
    assert set(candidates(traced, 3.0)) == set(predictors) >= set(LEARNED)
    with pytest.raises(UnknownNameError, match="monotone"):
        candidates(traced, 3.0, among=["monoton"])


def test_timings_that_cannot_be_used_are_refused():
    shares = sampled(12, 12, seed=1)
    with pytest.raises(RecipeError, match=r"latency\.samples"):
        validate(partial(Plane, 12, 20.0), shares[:9], torch.ones(9), generator=seeded())
    for ms in (torch.ones(11), torch.zeros(12), torch.full((12,), torch.nan)):
        with pytest.raises(ArtifactError):
            validate(partial(Plane, 12, 20.0), shares, ms, generator=seeded())
