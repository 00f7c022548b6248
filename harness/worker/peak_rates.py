"""Peak rates of a machine in a framework's hands: multiplying matrices and moving memory; and a page fault's cost.

Runs in the worker.
"""

import math
import mmap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness.records.schema import PeakRates, ProductTime
from harness.worker.timing import time_calls
from impls.interface import Backend


class Sizes(NamedTuple):
    """Sizes of what is measured on a device: the side of the square product, and the counts of the numbers scaled."""

    side: int
    counts: tuple[int, ...]


SIZES = {
    # On a CPU a larger array is new memory each time, mapped page by page.
    "cpu": Sizes(1024, tuple(1 << power for power in range(10, 23, 2))),
    # A GPU is full only under a large product, and its second-level cache holds up to 50 MB (H100).
    "gpu": Sizes(8192, tuple(1 << power for power in (10, 14, 18, 22, 26, 28))),
}
SAMPLES, SAMPLE_NS = 10, 1e6
SINGLE = (1, 1, 1)  # a product of single numbers, which takes as long as the call itself
PRODUCTS_NS = 1.5e9  # for all products, compiling included; those that are not reached are left out
PAGES = 4096  # pages per sample, of the kernel's smallest size


def measure_rates(backend: Backend, clock: Callable[[], int], device: str = "cpu") -> PeakRates:
    """Measure the peak rates of a framework on a device, and the cost of a page fault.

    The product is of float32 numbers, multiplied in the precision that the backend was opened in. Scaling is that of
    STREAM (McCalpin 1995), which reads and writes every number once.
    """
    side, counts = SIZES[device]
    flops_s = 2e9 * side**3 / _call_ns(backend.product(side, side, side), clock)
    scale_ns = {count: _call_ns(backend.scale(count), clock) for count in counts}
    return PeakRates(flops_s=flops_s, scale_ns=scale_ns, fault_ns=fault_ns(clock))


def product_times(
    backend: Backend, clock: Callable[[], int], execution: str, shapes: Iterable[tuple[int, int, int]]
) -> list[ProductTime]:
    """Return the nanoseconds of a call that multiplies, for SINGLE and then for each shape, the largest first.

    No product is begun once PRODUCTS_NS are over.
    """
    start = clock()
    return [
        ProductTime(*shape, _call_ns(backend.product(*shape, execution), clock))
        for shape in (SINGLE, *sorted(set(shapes) - {SINGLE}, key=math.prod, reverse=True))
        if clock() - start < PRODUCTS_NS
    ]


def fault_ns(clock: Callable[[], int]) -> float:
    """Return the nanoseconds that the kernel takes to give a process one new page.

    A sample writes to each of PAGES new pages once. From its time, the time of the same writes to the pages that are
    there by then is subtracted. The result is the best of SAMPLES samples, per page.
    """

    def sample() -> float:
        with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
            times = [_elapsed_ns(partial(pages.fill, 1), clock, 1) for _ in range(2)]
            del pages
        return max(times[0] - times[1], 0.0) / PAGES

    return min(sample() for _ in range(SAMPLES))


def _call_ns(call: Callable[[], None], clock: Callable[[], int]) -> float:
    """Return the nanoseconds per call: the best of SAMPLES samples, as in STREAM.

    A sample has as many calls as take about SAMPLE_NS.
    """

    _elapsed_ns(call, clock, 1)
    calls = max(1, int(SAMPLE_NS / max(_elapsed_ns(call, clock, 1), 1)))
    return min(_elapsed_ns(call, clock, calls) / calls for _ in range(SAMPLES))


def _elapsed_ns(call: Callable[[], Any], clock: Callable[[], int], calls: int) -> int:
    """Return the nanoseconds of `calls` calls in the timed region."""
    return time_calls(clock, lambda outputs: None, lambda x, target: call(), (None, None), calls)[0]
