"""Peak memory of a call: the most that it takes at once above what its process held before. Runs in the worker.

The kernel counts it for every program alike: it keeps the largest resident set of a process (VmHWM), and forgets it
when it is told to (proc(5), /proc/pid/clear_refs). It does not see what a framework has kept since an earlier call, and
uses again: TensorFlow keeps arrays above 256 KiB on a CPU, and all frameworks do on a GPU. Their own allocator counts
that, and what both count adds up.

The worker's environment has glibc give freed memory back (harness.machine.allocator.GIVEN_BACK). The kernel counts
pages in batches, so a peak may be off by about a megabyte.
"""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

from harness.records.schema import PeakMemory

CALLS = 2  # of which the larger peak counts
RESET_PEAK = "5"  # what clear_refs is told to forget the largest resident set
NOT_COUNTED = "the framework does not count what one call takes of a GPU's memory"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(
    call: Callable[[], object], framework_peak: Callable[[Callable[[], object]], int | None], on_gpu: bool = False
) -> PeakMemory:
    """Return the peak memory of a call that has been made before. `call` returns when its outputs are computed.

    `framework_peak`: the backend's own measurement of a call; None from it where it has none. `on_gpu`: whether the
    memory is a GPU's, of which the kernel knows nothing.
    """
    kernel_bytes, missing = None, ""
    try:
        if not on_gpu:
            kernel_bytes = max(kernel_peak_bytes(call) for _ in range(CALLS))
    except OSError as error:
        missing = f"the kernel does not tell: {error.strerror or error}"
    own = [peak for _ in range(CALLS) if (peak := framework_peak(call)) is not None]
    if on_gpu and not own:
        missing = NOT_COUNTED
    return PeakMemory(kernel_bytes=kernel_bytes, framework_bytes=max(own, default=None), missing=missing)


def kernel_peak_bytes(call: Callable[[], object]) -> int:
    """Return by how many bytes the process's resident set grew at most during a call. Raises OSError."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    """Return a quantity of /proc/self/status, which is in kibibytes. Raises OSError where it is not there."""
    if not (match := re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)):
        raise OSError(f"{STATUS} has no {name}")
    return int(match[1]) * 1024
