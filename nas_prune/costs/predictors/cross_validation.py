"""Which predictor fits this device and this network: the one that errs least on timings that it was not fitted on.

k-fold cross-validation: every timed sub-network is predicted once, by a predictor fitted on the other folds. All
candidates see the same folds, and the winner is then fitted on everything. Its error is a mean over few sub-networks,
so it comes with the interval in which it would lie, had other ones been drawn: the percentile bootstrap (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite

import torch
from torch import Tensor

from nas_prune.base.errors import ArtifactError, NasPruneError, RecipeError
from nas_prune.costs.predictors.predictor import PredictionError, Predictor, compare, predictors
from nas_prune.tracing import Axes

Make = Callable[[], Predictor]
RESAMPLED = 2000  # bootstrap draws: the ends of a 95 % interval are then known to a few percent of its length


@dataclass(frozen=True)
class ChosenPredictor:
    """The predictor that won, fitted on everything.

    ``predicted``: its out-of-fold milliseconds (b), each by a predictor that had not seen that sample; ``errors``:
    out-of-fold error of every candidate; ``interval``: 95 % bootstrap interval (low, high) of the winner's mean
    absolute percentage error, a share; ``left_out``: candidates that could not be built, and why.
    """

    name: str
    predictor: Predictor
    predicted: Tensor
    errors: Mapping[str, PredictionError]
    interval: tuple[float, float]
    left_out: Mapping[str, str] = field(default_factory=dict)


def candidates(
    axes: Axes, dense_ms: float, table: object | None = None, among: Iterable[str] | None = None
) -> dict[str, Make]:
    """How to make each registered predictor, or those named in ``among``; raises UnknownNameError for others."""
    names = predictors if among is None else among
    return {name: partial(predictors[name], axes, dense_ms, table) for name in names}


def validate(make: Make, shares: Tensor, ms: Tensor, *, folds: int = 5, generator: torch.Generator) -> PredictionError:
    """Error of the out-of-fold predictions for shares (b n) against measured milliseconds (b).

    Raises RecipeError where there are fewer than two samples per fold, ArtifactError where a timing makes no sense.
    """
    return compare(_out_of_fold(make, shares, ms, folds, generator), ms)


def best(
    makes: Mapping[str, Make], shares: Tensor, ms: Tensor, *, folds: int = 5, generator: torch.Generator
) -> ChosenPredictor:
    """The candidate of least out-of-fold error; raises RecipeError where none can be built, and as ``validate`` does.

    The same generator gives the same choice; the global random state stays as it is.
    """
    seed = _number(generator)
    makes, left_out = _buildable(makes)
    predicted = {
        name: _out_of_fold(make, shares, ms, folds, torch.Generator().manual_seed(seed)) for name, make in makes.items()
    }
    errors = {name: compare(each, ms) for name, each in predicted.items()}
    winner = min(errors, key=lambda name: errors[name].mape if isfinite(errors[name].mape) else inf)
    fitted = _fitted(makes[winner], shares, ms, torch.Generator().manual_seed(seed))
    interval = _interval((predicted[winner] / ms - 1).abs(), generator)
    return ChosenPredictor(winner, fitted, predicted[winner], errors, interval, left_out)


def _buildable(makes: Mapping[str, Make]) -> tuple[dict[str, Make], dict[str, str]]:
    """The candidates that can be built here, and the reasons of the others."""
    able, left_out = dict(makes), {}
    for name, make in makes.items():
        try:
            _made(make, seed=0)
        except NasPruneError as error:
            del able[name]
            left_out[name] = str(error)
    if not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise RecipeError(f"no latency predictor can be built ({reasons or 'none was named'}); name another one")
    return able, left_out


def _out_of_fold(make: Make, shares: Tensor, ms: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Milliseconds (b), each predicted without having been seen."""
    _check(shares, ms, folds)
    order = torch.randperm(len(ms), generator=generator)
    predicted = torch.empty_like(ms)
    for fold in range(folds):
        held_out = torch.zeros(len(ms), dtype=torch.bool)
        held_out[order[fold::folds]] = True
        predictor = _fitted(make, shares[~held_out], ms[~held_out], generator)
        with torch.no_grad():
            predicted[held_out] = predictor.predict(shares[held_out]).to(ms.dtype)
    return predicted


def _check(shares: Tensor, ms: Tensor, folds: int) -> None:
    if folds < 2 or len(ms) < 2 * folds:
        raise RecipeError(
            f"{folds}-fold cross-validation of a latency predictor needs at least {2 * max(2, folds)} timed "
            f"sub-networks, there are {len(ms)}; raise latency.samples"
        )
    if len(shares) != len(ms) or not bool((ms.isfinite() & (ms > 0)).all()):
        raise ArtifactError(
            f"the timings cannot be used: {len(shares)} sub-networks with {len(ms)} timings, which must all be above "
            "zero; delete the calibration folder and time them again"
        )


def _fitted(make: Make, shares: Tensor, ms: Tensor, generator: torch.Generator) -> Predictor:
    predictor = _made(make, seed=_number(generator))
    predictor.fit(shares, ms, generator=generator)
    return predictor


def _made(make: Make, *, seed: int) -> Predictor:
    """A fresh predictor whose starting weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _number(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _interval(off: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Where the mean of the errors (b) lies in 95 % of the draws with replacement."""
    draws = torch.randint(len(off), (RESAMPLED, len(off)), generator=generator)
    low, high = off[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=off.dtype)).tolist()
    return low, high
