"""A test that is one of several processes."""

import os
import socket

import torch
from accelerate import Accelerator


def joined(rank: int, processes: int, *, port: int) -> Accelerator:
    """The accelerator of process ``rank`` of ``processes`` on this CPU; to be called first in a spawned process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == processes
    return accelerator


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
