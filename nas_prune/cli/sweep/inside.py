"""What a run does differently when the agent of a sweep has started it.

Each run has a folder of its own, as the agent cannot tell the program which. And a budget that was missed, or that
nothing can meet, is a result: an agent gives up after a few exit codes that are not 0.
"""

import os
from collections.abc import Mapping
from pathlib import Path

SWEEP, RUN = "WANDB_SWEEP_ID", "WANDB_RUN_ID"


def in_a_sweep(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an agent has started this process."""
    return bool(environment.get(SWEEP) and environment.get(RUN))


def run_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of this run, runs/<sweep>/<run>; None outside sweeps."""
    if not in_a_sweep(environment):
        return None
    return Path("runs") / environment[SWEEP].rsplit("/", 1)[-1] / environment[RUN]
