"""What a machine can do at best in a framework's own hands: multiply matrices, move memory; and what a page fault
costs on it. Runs in the worker.
"""

import mmap
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from harness.worker.timing import timed
from impls.interface import Backend

SIDE = 1024  # of the square product: large
COUNTS = tuple(
    1 << power for power in range(10, 23, 2)
)  # of the numbers scaled; a larger array is new memory each time, mapped page by page
SAMPLES, SAMPLE_NS = 10, 1e6
PAGES = 4096  # of the kernel's smallest size


def measured(backend: Backend, clock: Callable[[], int]) -> dict[str, Any]:
    """Floating-point operations a second of a large float32 product; and nanoseconds of STREAM's scale, which reads and
    writes every number once (McCalpin 1995), by their count.
    """
    flops_s = 2e9 * SIDE**3 / _call_ns(backend.product(SIDE), clock)
    scale_ns = {str(count): _call_ns(backend.scale(count), clock) for count in COUNTS}
    return {"flops_s": flops_s, "scale_ns": scale_ns, "fault_ns": fault_ns(clock)}


def fault_ns(clock: Callable[[], int]) -> float:
    """Nanoseconds that the kernel takes to give a process one new page: the best of some samples of PAGES pages, each
    written to once, less what writing takes when they are there.
    """

    def sample() -> float:
        with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
            times = [_timed_ns(partial(pages.fill, 1), clock, 1) for _ in range(2)]
            del pages
        return max(times[0] - times[1], 0.0) / PAGES

    return min(sample() for _ in range(SAMPLES))


def _call_ns(call: Callable[[], None], clock: Callable[[], int]) -> float:
    """Nanoseconds a call: the best of some samples, each of as many calls as last long enough; as STREAM counts."""

    _timed_ns(call, clock, 1)
    calls = max(1, int(SAMPLE_NS / max(_timed_ns(call, clock, 1), 1)))
    return min(_timed_ns(call, clock, calls) / calls for _ in range(SAMPLES))


def _timed_ns(call: Callable[[], Any], clock: Callable[[], int], calls: int) -> int:
    return timed(clock, lambda outputs: None, lambda x, target: call(), (None, None), calls)[0]
