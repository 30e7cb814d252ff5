"""How a W&B agent tells a process which run of a sweep it is: by these names in its environment."""

import os

SWEEP, RUN, VALUES = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"


def in_a_sweep() -> bool:
    """Whether an agent has started this process."""
    return SWEEP in os.environ
