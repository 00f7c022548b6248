"""What a machine can do at best in a framework's own hands: multiply matrices, move memory. Runs in the worker."""

from collections.abc import Callable
from typing import Any

from harness.measure import timed
from impls.interface import Backend

SIDE = 1024  # of the square product: large
COUNTS = tuple(
    1 << power for power in range(10, 23, 2)
)  # of the numbers scaled; a larger array is new memory each time, mapped page by page
SAMPLES, SAMPLE_NS = 10, 1e6


def measured(backend: Backend, clock: Callable[[], int]) -> dict[str, Any]:
    """Floating-point operations a second of a large float32 product; and nanoseconds of STREAM's scale, which reads and
    writes every number once (McCalpin 1995), by their count.
    """
    flops_s = 2e9 * SIDE**3 / _call_ns(backend.product(SIDE), clock)
    return {"flops_s": flops_s, "scale_ns": {str(n): _call_ns(backend.scale(n), clock) for n in COUNTS}}


def _call_ns(call: Callable[[], None], clock: Callable[[], int]) -> float:
    """Nanoseconds a call: the best of some samples, each of as many calls as last long enough; as STREAM counts."""

    def sample(calls: int) -> float:
        return timed(clock, lambda outputs: None, lambda x, target: call(), (None, None), calls)[0] / calls

    sample(1)
    calls = max(1, int(SAMPLE_NS / max(sample(1), 1)))
    return min(sample(calls) for _ in range(SAMPLES))
