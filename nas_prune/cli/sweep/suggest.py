"""Which run comes next, and which must stop: W&B's own rules, from the package ``sweeps``, without a server.

Every suggestion draws its randomness from (seed, number), so it is the same one after a restart. A run that hyperband
has stopped counts with the best that it had reached, a failed one as W&B's ``impute`` says.
"""

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from nas_prune.base.errors import RecipeError, RuntimeMissingError, first_line
from nas_prune.cli.sweep.file import Sweep

INSTALL = 'pip install "nas_prune[sweeps]"'


@dataclass
class Past:
    """A run as the rules see it: its values by flat names, how it is (running, finished, failed), its scores."""

    run: str
    values: Mapping[str, Any]
    state: str = "running"
    scores: Sequence[float] = field(default_factory=list)


def require() -> None:
    """Raise RuntimeMissingError, with the command that installs it, where the package is missing."""
    if find_spec("sweeps") is None:
        raise RuntimeMissingError(f"suggesting runs needs the package sweeps, which is not installed; run: {INSTALL}")


def suggest(sweep: Sweep, past: Sequence[Past], seed: int) -> dict[str, Any] | None:
    """The values of the next run by flat names; None where a grid is complete. Raises RecipeError for a bad file."""
    require()
    with _quiet(), _drawing(f"{seed}:{len(past)}"):
        import sweeps

        try:
            found = sweeps.next_run(_config(sweep), _runs(sweep, past))
        except Exception as error:  # ValueError, AssertionError, KeyError, those of jsonschema
            raise _refused(sweep, error) from error
    return None if found is None else {name: _plain(each["value"]) for name, each in found.config.items()}


def to_stop(sweep: Sweep, past: Sequence[Past]) -> list[str]:
    """The running runs that early termination ends now."""
    if "early_terminate" not in sweep.content:
        return []
    require()
    with _quiet():
        import sweeps

        try:
            return [str(run.name) for run in sweeps.stop_runs(_config(sweep), _runs(sweep, past))]
        except Exception as error:  # as above
            raise _refused(sweep, error) from error


def first_runs(sweep: Sweep, count: int, seed: int) -> list[dict[str, Any]]:
    """The values of the first runs, as long as nothing is known of how they end."""
    past: list[Past] = []
    while len(past) < count:
        values = suggest(sweep, past, seed)
        if values is None:
            break
        past.append(Past(str(len(past)), values))
    return [dict(each.values) for each in past]


def _config(sweep: Sweep) -> dict[str, Any]:
    """The file with flat parameters: the grid of ``sweeps`` 0.2.0 does not know nested ones again."""
    return {**sweep.content, "parameters": sweep.parameters}


def _runs(sweep: Sweep, past: Sequence[Past]) -> list[Any]:
    import sweeps

    return [
        sweeps.SweepRun(
            name=each.run,
            state=each.state,
            config={name: {"value": value} for name, value in each.values.items()},
            sampledHistory=[{sweep.metric: score} for score in each.scores],
        )
        for each in past
    ]


def _refused(sweep: Sweep, error: Exception) -> RecipeError:
    what = first_line(error) or type(error).__name__
    return RecipeError(f"{sweep.path}: the rules of W&B's sweeps refuse it ({what}); see `nas-prune sweep lint`")


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, which is what W&B's server sends."""
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _quiet() -> Iterator[None]:
    """The package warns of its own age (pydantic), and its regression of few points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _drawing(seed: str) -> Iterator[None]:
    """Both generators that the package uses begin from a seed, and go on as before afterwards."""
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
