"""Processes that torchrun or accelerate has launched together: the first one speaks for all."""

import os


def is_first() -> bool:
    """Whether this process is the first of those, or the only one."""
    return os.environ.get("RANK", "0") == "0"
