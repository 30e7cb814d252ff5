"""How a command that runs a recipe ends: what came of it, and an exit code that says whether that was asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from nas_prune.base.sweeps import in_a_sweep
from nas_prune.cli.help import figures

MISSED = 3


def show(results: Mapping[str, Any]) -> None:
    """The table of a finished run, what must be known first in red; or the figures of a step, one line each."""
    if "finetuned" not in results:
        figures(results)
        return
    from rich.console import Console

    from nas_prune.run.report.page import table

    Console().print(table(results))


def end(results: Sequence[Mapping[str, Any]]) -> None:
    """End with exit code 3 where a model was made that is not within its target; to a sweep that is a result, too."""
    if not in_a_sweep() and any(each.get("status") == "missed" for each in results):
        raise typer.Exit(MISSED)
