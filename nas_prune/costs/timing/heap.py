"""Let the process keep the memory that a call has freed: the next call needs the same again (ours).

By default glibc hands freed memory back to the system when much of it lies at the end of the heap, and each page costs
a fault when it comes back with the next call. Whether that happens depends on what the process has allocated before,
so the same two models, timed twice, differ: MobileNetV3-small at 96 x 96 took 33 ms and a smaller one 0.53 or 0.66
times as long, on a virtual machine; with the memory kept, 10 ms and 0.64 times, always. A server gets the same by the
environment variables of mallopt(3), or from jemalloc and tcmalloc, which keep memory anyway.
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_TRIM, MOST_MMAP = 2**31 - 1, 32 * 2**20  # bytes; the most that glibc takes


@cache
def keep_freed_memory() -> bool:
    """From here on freed memory stays with this process; whether that could be had (glibc only)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {M_MMAP_THRESHOLD: MOST_MMAP, M_TRIM_THRESHOLD: MOST_TRIM}
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
