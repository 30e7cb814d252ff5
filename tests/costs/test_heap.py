"""Freed memory stays with a process that times models: what a call takes must not depend on who ran before."""

import os
import subprocess
import sys
from mmap import PAGESIZE

import pytest

COUNT = """
import resource, torch
from nas_prune.costs.timing import heap
def call():
    return sum(float(each[0]) for each in [torch.ones(2**20) for _ in range(12)])  # 4 MiB each, all there at once
def faults():
    for _ in range(5):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
heap.keep_freed_memory()
print(faults())
"""


def faults() -> list[int]:
    """Page faults of 50 calls in a process whose heap gives back all that it can, and when it keeps its memory."""
    giving = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc's defaults, made fixed
    command = [sys.executable, "-c", COUNT]
    return [int(line) for line in subprocess.check_output(command, text=True, env={**os.environ, **giving}).split()]


@pytest.mark.zoo
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_a_process_that_keeps_its_memory_does_not_fetch_it_anew() -> None:
    pages = 12 * 4 * 2**20 // PAGESIZE
    giving, keeping = faults()
    assert keeping < 2 * pages  # once, not in each of 50 calls
    assert giving > 20 * pages
