"""Lint: whatever of a sweep file would waste the runs, each in one line with what to do.

W&B itself accepts nearly everything: a parameter that the program does not know, a metric that nobody logs and a macro
that it does not know all go by without a word, and the runs are as good as lost.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nas_prune.base.errors import RecipeError, shown
from nas_prune.base.registry import hint
from nas_prune.cli.sweep import command_line, parameters
from nas_prune.cli.sweep.command_line import AS_JSON, COMMANDS, MACRO, PLACES, VARIABLE, WRITTEN
from nas_prune.cli.sweep.file import SCORE, Sweep

METHODS = ("grid", "random", "bayes")
TOP: tuple[str, ...] = (
    "program",
    "command",
    "method",
    "parameters",
    "metric",
    "early_terminate",
    "name",
    "project",
    "entity",
)
TOP += (
    "description",
    "run_cap",
    "settings",
    "job",
    "image_uri",
    "controller",
    "launch",
    "apiVersion",
    "kind",
    "prior_runs",
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
SHELL = ("&&", "||", "|", ";", ">", "<", "&")
MANY = 1000  # runs of a grid, from which it is said that it is large
LOGGED = {  # what else runs log, and why it is no score
    "eval/top1": "its best is that of an epoch before anything was removed",
    "train/loss": "it says nothing of the derived model",
    "train/lr": "it says nothing of the derived model",
    "search/open": "it says nothing of accuracy",
    "final/top1": "it says nothing of the budget, and comes once, at the end",
    **dict.fromkeys(("final/latency_ms", "final/latency_pred_ms", "final/macs"), "it says nothing of accuracy"),
    **dict.fromkeys(("final/params", "final/speedup"), "it says nothing of accuracy"),
}


@dataclass(frozen=True)
class Finding:
    """One line: where, and what is wrong and what to do. A warning is no problem, but worth knowing."""

    where: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.where}: {self.text}"


def findings(sweep: Sweep) -> list[Finding]:
    """Everything that is wrong with a sweep file; the values of its parameters are tried on its recipe."""
    found = [*_top(sweep), *_forms(sweep), *_command(sweep), *_metric(sweep), *_early(sweep)]
    malformed = any(not each.warning for each in found if each.where.split(".")[0] in ("parameters", "method"))
    if sweep.ours is not None and not malformed:
        from nas_prune.cli.sweep import trial  # torch is slow to import

        found += trial.findings(sweep)
    return list(dict.fromkeys(found))


def refuse(sweep: Sweep) -> None:
    """Raise RecipeError, with the first problem, for a file from which no runs follow."""
    wrong = [each for each in (*_top(sweep), *_forms(sweep)) if not each.warning]
    if wrong:
        raise RecipeError(f"{sweep.path}: {wrong[0]}; `nas-prune sweep lint` shows everything")


def _top(sweep: Sweep) -> Iterator[Finding]:
    """Keys of the file, and the method."""
    for key in sweep.content:
        if key not in TOP:
            yield Finding(str(key), f"W&B knows no such key{hint(str(key), TOP)}")
    if sweep.method not in METHODS:
        yield Finding("method", f"it is {sweep.content.get('method')!r}{hint(sweep.method, METHODS)}")
    cap = sweep.content.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap > 0):
        yield Finding("run_cap", f"it is {shown(cap)}; write how many runs there are to be")


def _forms(sweep: Sweep) -> Iterator[Finding]:
    """Parameters as W&B wants them written."""
    given = sweep.content.get("parameters")
    if not isinstance(given, Mapping) or not given:
        yield Finding("parameters", "there are none; write a mapping such as {budget.target: {values: [0.5x, 0.7x]}}")
        return
    for name, parameter in sweep.parameters.items():
        where = f"parameters.{parameters.dotted(name)}"
        if not all(NAME.fullmatch(part) for part in name.split(parameters.JOINT)):
            yield Finding(where, "W&B allows letters, digits, and _ . - in a name")
        wrong = list(parameters.problems(parameter))
        yield from (Finding(where, text) for text in wrong)
        if wrong:
            continue
        kind = parameters.distribution(parameter)
        if sweep.method == "grid" and kind not in parameters.FINITE:
            yield Finding(where, f"a grid has no {kind} parameter; write values: [...], or method: random")
        if kind == "categorical" and len(parameters.grid_values(parameter)) < len(parameter["values"]):
            yield Finding(where, "a value is given twice; leave one out", warning=True)
    yield from _extent(sweep)


def _extent(sweep: Sweep) -> Iterator[Finding]:
    """Whether there is anything to vary, and too much of it."""
    known = sweep.parameters.values()
    if any(list(parameters.problems(each)) for each in known):
        return
    if not sweep.varying:
        yield Finding("parameters", "none varies, every run would be the same; give one of them values: [...]")
    size = sweep.size if all(parameters.distribution(each) in parameters.FINITE for each in known) else None
    if sweep.method == "grid" and size is not None and size > MANY:
        yield Finding("parameters", f"the grid has {size} runs; write method: random, or run_cap", warning=True)


def _command(sweep: Sweep) -> Iterator[Finding]:
    """What the agent would execute."""
    given = sweep.content.get("command")
    if given is not None and not (isinstance(given, list) and given):
        yield Finding("command", "it is no list; write [${env}, nas-prune, run, RECIPE, ${args}]")
        return
    yield from _elements(sweep)
    macro = command_line.macro_of(sweep.command)
    if macro is None:
        if sweep.ours is None:
            yield Finding("command", "no element is ${args}, so every run would be the same; add it as a whole element")
        else:
            text = (
                "no element is ${args}: runs find their values in W&B's file alone, and no command shows them; add it"
            )
            yield Finding("command", text, warning=True)
    if "${program}" in sweep.command and sweep.program is None and given is not None:
        yield Finding("program", "it is missing, and the command has ${program}; name it, or write nas-prune there")
    yield from _ours(sweep)


def _elements(sweep: Sweep) -> Iterator[Finding]:
    """Elements, one by one."""
    known = [*PLACES, *WRITTEN, *AS_JSON]
    for element in map(str, sweep.command):
        rest = VARIABLE.sub("", element)
        whole, inner = MACRO.fullmatch(rest), MACRO.findall(rest)
        if whole and whole[1] not in known:
            yield Finding(
                "command", f"W&B knows no macro {element}, and drops it without a word{hint(whole[1], known)}"
            )
        elif inner and not whole:
            yield Finding("command", f"the macro in {element!r} stays as it is; a macro is a whole element of the list")
        elif element in SHELL:
            yield Finding("command", f"{element} means nothing, as no shell reads the command; put it into a script")
        elif element.startswith(("nas-prune ", "python ", "torchrun ")):
            words = ", ".join(element.split())
            yield Finding("command", f"{element!r} is one word, as no shell reads the command; write [{words}]")
        for name in VARIABLE.findall(element):
            if name not in os.environ:
                yield Finding("command", f"{name} is not set here, and the agent writes its name then", warning=True)


def _ours(sweep: Sweep) -> Iterator[Finding]:
    """Whether it is our program, a command of it, and a recipe."""
    command = sweep.ours
    if command is None:
        what = sweep.program or " ".join(map(str, sweep.command))
        yield Finding(
            "program" if sweep.program else "command",
            f"{shown(what)} is not nas-prune, so nothing is known of its parameters; for ours write "
            "command: [${env}, nas-prune, run, RECIPE, ${args}]",
        )
        return
    if command.verb not in COMMANDS:
        yield Finding(
            "command", f"it gives nas-prune {command.verb!r} to do; write run and a recipe behind the program"
        )
        return
    if command.verb != "run":
        text = f"nas-prune {command.verb} ends before there are results; write run"
        yield Finding("command", text, warning=True)
    if command.recipe is None:
        yield Finding("command", f"no recipe is named; write one behind {command.verb}, such as quickstart")
    if any(word.split("=")[0] == "--out" for word in command.words):
        yield Finding("command", "all runs would share the folder of --out; leave it out, and each has its own")


def _metric(sweep: Sweep) -> Iterator[Finding]:
    """What is optimised, and which way."""
    metric = sweep.content.get("metric")
    if metric is None:
        needs = [f"method: {sweep.method}"] * (sweep.method == "bayes") + ["early_terminate"] * (
            "early_terminate" in sweep.content
        )
        if needs:
            yield Finding("metric", f"{needs[0]} needs one; write {{name: {SCORE}, goal: maximize}}")
        return
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        yield Finding("metric", f"it has no name; write {{name: {SCORE}, goal: maximize}}")
        return
    name, goal = metric["name"], metric.get("goal", "minimize")
    if name == SCORE and goal != "maximize":
        yield Finding("metric.goal", f"{SCORE} is better the higher it is, and W&B minimises; write goal: maximize")
    elif goal not in ("minimize", "maximize"):
        yield Finding("metric.goal", f"it is {shown(goal)}{hint(str(goal), ('minimize', 'maximize'))}")
    if name == SCORE:
        return
    family = name.split("/")[0] in ("gate", "search") and "/" in name
    if name in LOGGED or family:
        why = LOGGED.get(name, "it says nothing of the derived model")
        yield Finding("metric.name", f"{name} is no score: {why}; write {SCORE}", warning=True)
    else:
        yield Finding("metric.name", f"no run logs {name!r}{hint(name, (SCORE, *LOGGED))}")


def _early(sweep: Sweep) -> Iterator[Finding]:
    """The form of early termination; whether it can come into play depends on the recipe."""
    early: Any = sweep.content.get("early_terminate")
    if early is None:
        return
    if not isinstance(early, Mapping) or early.get("type") != "hyperband":
        yield Finding("early_terminate", "W&B knows one type; write {type: hyperband, min_iter: 3}")
        return
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    for key in early:
        if key not in known:
            yield Finding(f"early_terminate.{key}", f"W&B knows no such key{hint(str(key), known)}")
    if bands(early) == [] or not all(isinstance(early.get(key, 1), int) for key in ("min_iter", "max_iter", "s")):
        yield Finding("early_terminate", "no band follows from it; write min_iter, or max_iter and s, as whole numbers")
    if not (isinstance(early.get("eta", 3), int | float) and early.get("eta", 3) > 1):
        yield Finding("early_terminate.eta", "it must be above 1; 3 is W&B's own")


def bands(early: Any) -> list[int]:
    """The first rows after which runs are compared, in ascending order; [] where the numbers give none."""
    if not isinstance(early, Mapping):
        return []
    eta = early.get("eta", 3)
    counts = [early.get(key) for key in ("min_iter", "max_iter", "s")]
    least, most, steps = (count if isinstance(count, int) else None for count in counts)
    if not isinstance(eta, int | float) or eta <= 1:
        return []
    if most is not None and steps is not None:
        return sorted(int(most / eta**step) for step in range(1, steps + 1) if most / eta**step >= 1)
    return [int(least * eta**step) for step in range(5)] if least is not None and least > 0 else []
