"""The runs of a sweep, tried without running them: does the recipe take every value, and can the sweep do its work?"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_prune.base.errors import CalibrationError, NasPruneError, RecipeError, one_line
from nas_prune.cli import agent
from nas_prune.cli.sweep import parameters
from nas_prune.cli.sweep.command_line import WRITTEN, macro_of
from nas_prune.cli.sweep.file import Sweep
from nas_prune.cli.sweep.lint import Finding, bands
from nas_prune.costs.budget import checked_target
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.checks import check
from nas_prune.run.job import decisive
from nas_prune.run.recipe import inputs
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.run.recipe.words import as_words

FALLBACK = "quickstart"  # on which keys are tried where the sweep's own recipe cannot be read
MOST = 64  # combinations of a grid that are all tried
DECISIVE = ("method", "metric", "parameters", "command", "program", "early_terminate")  # of a sweep file
OPTIONS = ("--out", "--resume", "--no-resume", "--force", "--debug")  # of the command, not of the recipe


@dataclass(frozen=True)
class Subject:
    """What is tried: the recipe, the overrides that the command has anyway, and how it writes parameters.

    ``behind``: the overrides that the command has behind the parameters.
    """

    recipe: str
    fixed: tuple[str, ...]
    macro: str
    behind: tuple[str, ...] = ()

    def read(self, given: Mapping[str, Any]) -> Recipe:
        """The recipe of a run, as the run reads it. Raises RecipeError for what it does not take."""
        words = [word for name, value in given.items() for word in WRITTEN[self.macro](name, value)]
        found = recipes.read(self.recipe, [*as_words(given), *self.fixed, *words, *self.behind])
        agent.check(found, given)
        return found


def findings(sweep: Sweep) -> Iterator[Finding]:
    """What is wrong with the recipe, its parameters, and what the sweep hopes for."""
    subject, problem = _subject(sweep)
    if problem is not None:
        yield problem
    bad: set[str] = set()
    for name, parameter in sweep.parameters.items():
        texts = list(_refused(subject, name, parameter))
        bad.update([name] if texts else [])
        yield from (Finding(f"parameters.{parameters.dotted(name)}", text) for text in texts)
    if bad or problem is not None:
        return
    found: list[Recipe] = []
    for values in combinations(sweep):
        try:
            run = subject.read(parameters.nested(values))
            check(run)
            found.append(run)
        except NasPruneError as error:
            yield Finding("parameters", f"{_line(error)}; this is so with {_told(values, sweep)}")
    yield from _in_the_agent(found)
    yield from _too_short(sweep, found)
    yield from dict.fromkeys(_unreachable(found))


def identity(sweep: Sweep, seed: int) -> str:
    """Eight letters for a sweep: of what it varies, how it is run, the seed, its recipe, and the files named there."""
    subject, _ = _subject(sweep)
    told: list[Any] = [{key: sweep.content.get(key) for key in DECISIVE}, seed]
    files = set[tuple[str, Path]]()
    for values in combinations(sweep):
        try:
            run = subject.read(parameters.nested(values))
        except NasPruneError as error:  # which the run will say
            told.append(str(error))
        else:
            told.append(decisive(run))
            files |= inputs.named(run).items()
    told += [[key, inputs.sum_at(key, path)] for key, path in sorted(files)]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]


def combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Values of all parameters: every combination of a small grid, else one value after the other beside the first."""
    tried = {name: parameters.trials(parameter) for name, parameter in sweep.parameters.items()}
    if sweep.method == "grid" and parameters.grid_size(sweep.parameters) <= MOST:
        yield from (dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values()))
        return
    first = {name: values[0] for name, values in tried.items()}
    yield first
    yield from (first | {name: value} for name, values in tried.items() for value in values[1:])


def _subject(sweep: Sweep) -> tuple[Subject, Finding | None]:
    """What to try, and what is wrong with the recipe that the command names."""
    command, macro = sweep.ours, macro_of(sweep.command)
    later = list(map(str, sweep.command))[sweep.command.index(f"${{{macro}}}") :] if macro else []
    macro = macro if macro in WRITTEN else "args"
    if command is None or command.recipe is None:
        return Subject(FALLBACK, (), macro), None
    words = [word for word in command.words if word.split("=")[0] not in OPTIONS]
    fixed = tuple(word for word in words if word not in later)
    subject = Subject(command.recipe, fixed, macro, tuple(word for word in words if word in later))
    try:
        subject.read({})
    except RecipeError as error:
        return Subject(FALLBACK, (), macro), Finding("command", _line(error))
    return subject, None


def _refused(subject: Subject, name: str, parameter: Mapping[str, Any]) -> Iterator[str]:
    """Why the recipe does not take values of a parameter, each reason once."""
    reasons: dict[str, Any] = {}
    for value in parameters.trials(parameter):
        try:
            subject.read(parameters.nested({name: value}))
        except RecipeError as error:
            reasons.setdefault(_line(error), value)
            if "unknown key" in str(error):
                break
    yield from reasons


def _in_the_agent(found: list[Recipe]) -> Iterator[Finding]:
    if any(run.track.wandb == "disabled" for run in found):
        text = (
            "track.wandb is disabled, so that W&B sees no score; add track.wandb=auto, or use `nas-prune sweep local`"
        )
        yield Finding("command", text, warning=True)


def _too_short(sweep: Sweep, found: list[Recipe]) -> Iterator[Finding]:
    """Runs that end before hyperband first compares them; scores come once per epoch from the search on."""
    first = bands(sweep.content.get("early_terminate"))[:1]
    if not first or not found:
        return
    rows = min(run.search.epochs + run.finetune.epochs for run in found)
    if rows <= first[0]:
        text = f"runs are first compared after {first[0] + 1} scores, and there are {rows}, one per epoch of search and"
        yield Finding("early_terminate", f"{text} fine-tuning; write min_iter: {max(1, rows // 3)}")


def _unreachable(found: list[Recipe]) -> Iterator[Finding]:
    """Budgets below what the smallest network of the calibration took."""
    for run in found:
        if run.latency.calibration is None or run.budget.cost != "latency":
            continue
        try:
            _, facts = calibration_file.read(Path(run.latency.calibration), "correct latency.calibration")
        except CalibrationError as error:
            yield Finding("latency.calibration", _line(error))
            continue
        amount, unit = checked_target("budget.target", run.budget.target, run.budget.cost)
        least = facts["smallest_ms"] / (facts["dense_ms"] if unit == "x" else 1.0)
        if amount < least:
            text = (
                f"{run.budget.target} cannot be met: by the calibration, the smallest network takes {least:.3g}{unit}"
            )
            yield Finding("parameters.budget.target", f"{text}; ask for at least {1.05 * least:.2g}{unit}")


def _told(values: Mapping[str, Any], sweep: Sweep) -> str:
    return ", ".join(f"{parameters.dotted(name)}={values[name]}" for name in sweep.varying) or "every run"


def _line(error: NasPruneError) -> str:
    return one_line(str(error), 400)
