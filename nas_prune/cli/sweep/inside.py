"""What a run does differently when the agent of a sweep has started it.

Each run has a folder of its own, as the agent cannot tell the program which. And a budget that was missed, or that
nothing can meet, is a result: an agent gives up after a few exit codes that are not 0.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer

from nas_prune.base.errors import BudgetError

SWEEP, RUN = "WANDB_SWEEP_ID", "WANDB_RUN_ID"


def in_a_sweep(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an agent has started this process."""
    return bool(environment.get(SWEEP) and environment.get(RUN))


def run_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of this run, runs/<sweep>/<run>; None outside sweeps."""
    if not in_a_sweep(environment):
        return None
    return Path("runs") / environment[SWEEP].rsplit("/", 1)[-1] / environment[RUN]


@contextmanager
def tolerated(folder: Path) -> Iterator[None]:
    """In a sweep, a budget that nothing in the block can meet ends the program with its reason and exit code 0."""
    try:
        yield
    except BudgetError as error:
        if not in_a_sweep() or not (folder / "results.json").exists():
            raise
        typer.echo(f"infeasible: {error}", err=True)
        raise typer.Exit from error
